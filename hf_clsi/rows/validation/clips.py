"""Turns the clips of a dataset into findings: each by itself, and its length against units and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ...speech.audio import AudioError, read_audio
from ..schema import id_column
from .folder import PARQUET_ERRORS, DatasetFolder, ShardFile, SideColumns, Table, first_line, shown_id
from .report import Findings, ValidationLimits

_ROWS_PER_BATCH = 8
_BLOCK_SECONDS = 0.02  # silence is looked for in blocks of this length
_FULL_SCALE = 32767 / 32768


@dataclass(frozen=True)
class AudioTask:
    """One row group of one file. rates_hz: audio column -> sampling rate of its first clip."""

    path: str
    row_group: int
    first_row: int
    id_column: str | None
    sides: tuple[SideColumns, ...]
    rates_hz: Mapping[str, int]
    frame_rate_hz: float | None
    limits: ValidationLimits


@dataclass
class AudioResult:
    rows: int = 0
    clips: int = 0
    seconds: float = 0.0
    faults: list[tuple[str, str, str]] = field(default_factory=list)  # reason, id, message
    error: str | None = None


def inspect_clip(
    content: bytes, limits: ValidationLimits, num_sentences: int = 1
) -> tuple[float | None, int | None, list[tuple[str, str]]]:
    """An encoded clip -> (seconds, sampling rate in Hz, faults as (reason, message)).

    Seconds and rate are None where it cannot be decoded. Several channels are averaged, as everywhere.

    Example:
        >>> inspect_clip(b"RIFF", ValidationLimits())[2][0][0]
        'unreadable_audio'
    """
    try:
        waveform, rate = read_audio(content, name="clip")
    except AudioError as error:
        reason = "not_finite_audio" if error.reason == "not_finite" else "unreadable_audio"
        return None, None, [(reason, f"{error.reason}: {error.message}")]
    seconds, faults = len(waveform) / rate, []
    if seconds < limits.min_clip_seconds:
        faults.append(("short_clip", f"{seconds:.3f} s"))
    if seconds > limits.max_clip_seconds * num_sentences:
        faults.append(("long_clip", f"{seconds:.1f} s"))
    power = np.square(waveform, dtype=np.float32)
    loudness = 10 * np.log10(max(float(power.mean(dtype=np.float64)), 1e-20))
    if loudness < limits.silence_dbfs:
        faults.append(("silent_audio", f"RMS {loudness:.0f} dBFS" if loudness > -200 else "all zeros"))
    else:
        size = max(1, int(_BLOCK_SECONDS * rate))
        blocks = power[: len(power) // size * size].reshape(-1, size).mean(axis=1)
        share = float((blocks < 10 ** (limits.silence_dbfs / 10)).mean()) if len(blocks) else 0.0
        if share > limits.max_silent_share:
            faults.append(("mostly_silent", f"{share:.0%} of {seconds:.2f} s"))
    full = np.abs(waveform) >= _FULL_SCALE
    if np.count_nonzero(full) > limits.max_full_scale_run:
        borders = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]]).astype(np.int8)))
        longest = int((borders[1::2] - borders[::2]).max())
        if longest > limits.max_full_scale_run:
            share = np.count_nonzero(full) / len(full)
            faults.append(("clipping", f"{longest} samples in a row, {share:.2%} of all"))
    return seconds, rate, faults


def check_audio(
    own: DatasetFolder,
    findings: Findings,
    not_done: list[str],
    limits: ValidationLimits,
    num_workers: int,
    progress: bool,
) -> tuple[int, float]:
    """Decode and check every clip -> (clips, seconds of audio)."""
    tasks: list[tuple[Table, ShardFile, AudioTask]] = []
    for table in own.tables:
        sides = tuple(side for side in table.sides if side.audio)
        if not sides:
            continue
        name = id_column(own.kind) if id_column(own.kind) in table.types else None
        rates = _first_rates(table, sides)
        for side in sides:
            if side.audio not in rates:
                not_done.append(f"sampling rates of {table.where} {side.audio}: the first clip is unreadable")
        for file in table.files:
            first = file.first_row
            for group, size in enumerate(file.row_groups):
                task = AudioTask(str(file.path), group, first, name, sides, rates, own.frame_rate_hz, limits)
                tasks.append((table, file, task))
                first += size
    clips, seconds = 0, 0.0
    total = sum(table.num_rows for table in own.tables if table.has_audio)
    if num_workers > 1:
        # Started anew: a fork of a process whose libraries run threads (Arrow, torch) can hang.
        pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
    else:
        pool = nullcontext()
    with pool as executor, tqdm(total=total, desc="audio", unit="row", disable=not progress) as bar:
        mapped = (executor.map if executor else map)(_inspect_row_group, (task for _, _, task in tasks))
        for (table, file, _), result in zip(tasks, mapped, strict=True):
            for reason, row_id, message in result.faults:
                findings.add(reason, table.where, row_id, message)
            if result.error:
                findings.add("unreadable_file", table.where, table.relative(file.path), result.error)
            clips, seconds = clips + result.clips, seconds + result.seconds
            bar.update(result.rows)
    return clips, seconds


def _first_rates(table: Table, sides: Sequence[SideColumns]) -> dict[str, int]:
    """Audio column -> sampling rate of its first clip in Hz, where that can be read."""
    rates = {}
    for side in sides:
        try:
            with pq.ParquetFile(table.files[0].path) as file:
                batch = next(file.iter_batches(1, columns=[side.audio], use_threads=False), None)
            value = batch.column(0)[0].as_py() if batch is not None else None
            clip = value[0] if side.listed and value else value
            rates[side.audio] = read_audio(clip["bytes"])[1]
        except (*PARQUET_ERRORS, AudioError, TypeError, KeyError):
            continue
    return rates


def _inspect_row_group(task: AudioTask) -> AudioResult:
    """Check the clips of one row group; runs in a process of its own where there are several."""
    result = AudioResult()
    columns = [task.id_column] if task.id_column else []
    columns += [name for side in task.sides for name in (side.audio, side.units, side.seconds) if name]
    try:
        with pq.ParquetFile(task.path) as file:
            batches = file.iter_batches(
                _ROWS_PER_BATCH, row_groups=[task.row_group], columns=columns, use_threads=False
            )
            for batch in batches:
                for i in range(batch.num_rows):
                    value = batch[task.id_column][i].as_py() if task.id_column else None
                    row_id = shown_id(value, task.first_row + result.rows)
                    for side in task.sides:
                        _inspect_side(task, side, batch, i, row_id, result)
                    result.rows += 1
    except PARQUET_ERRORS as error:
        result.error = first_line(error)
    return result


def _inspect_side(
    task: AudioTask, side: SideColumns, batch: pa.RecordBatch, i: int, row_id: str, result: AudioResult
) -> None:
    """The clips of one row and side: each by itself, and their lengths against units and seconds."""

    def add(reason: str, message: str) -> None:
        result.faults.append((reason, row_id, message))

    value = batch[side.audio][i].as_py()
    if value is None or value == []:
        add("missing_audio", side.audio)
        return
    clips = value if side.listed else [value]
    frames = None  # of each clip
    if side.units and batch[side.units][i].is_valid:
        units = batch[side.units][i].values
        frames = pc.list_value_length(units).fill_null(0).to_pylist() if side.nested else [len(units)]
        if side.listed and len(frames) != len(clips):
            add("unequal_sentence_counts", f"{side.units} {len(frames)}, {side.audio} {len(clips)}")
            frames = None
    # A prompt is one clip of several sentences.
    num_sentences = 1 if side.listed or frames is None else max(1, len(frames))
    if frames is not None and not side.listed:
        frames = [sum(frames)]
    total: float | None = 0.0
    for j, clip in enumerate(clips):
        name = f"{side.audio}[{j}]" if side.listed else side.audio
        if not clip or not clip.get("bytes"):
            add("missing_audio", name)
            total = None
            continue
        seconds, rate, faults = inspect_clip(clip["bytes"], task.limits, num_sentences)
        result.clips += 1
        for reason, message in faults:
            add(reason, f"{name}: {message}")
        if seconds is None:
            total = None
            continue
        result.seconds += seconds
        total = total + seconds if total is not None else None
        expected = task.rates_hz.get(side.audio, rate)
        if rate != expected:
            add("mixed_sampling_rates", f"{name}: {rate} Hz, the first clip has {expected}")
        if frames is not None and task.frame_rate_hz:
            limit = task.limits.frames_per_sentence * num_sentences
            if abs(seconds * task.frame_rate_hz - frames[j]) > limit + 1e-3:
                length = frames[j] / task.frame_rate_hz
                add("wrong_duration", f"{name}: {seconds:.3f} s, {frames[j]} units are {length:.3f} s")
    if side.seconds and total is not None and (promised := batch[side.seconds][i].as_py()) is not None:
        frame = 1 / task.frame_rate_hz if task.frame_rate_hz else 0.1
        if abs(promised - total) > task.limits.frames_per_sentence * frame * len(clips) + 1e-3:
            add("wrong_seconds", f"{side.seconds} {promised:g}, the audio has {total:.3f}")
