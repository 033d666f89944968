"""Turns recordings into a Parquet dataset of parallel rows with units.

A folder holds <config>/<split>-*.parquet (without a config: data/), audio_tokenizer/ if the tokenizer was
fitted here, and what encoded.py keeps beside them.

A few minutes of audio are in memory at a time. Shards appear one by one, each whole or not at all, and
encoding.json says which are there: the same call after an interruption goes on behind the last one. What
cannot be used is listed in refused.jsonl, one line a file, and counted by reason: those of recordings.py, and

    AudioError's reasons  missing, empty, not_audio, truncated, not_finite, too_short (less than one unit)
    unreadable            the operating system refuses to read the file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..configuration_clsi_units import ClsiUnitsConfig
from ..speech.audio import AudioError, read_audio
from ..units.encode import (
    encode_waveforms,
    frame_rate_of,
    load_audio_tokenizer,
    num_units_of,
    sampling_rate_of,
)
from ..units.kmeans import fit_units
from ..units.tokenizers import (
    TOKENIZER_FOLDER,
    embedded_config,
    resolve_audio_tokenizer,
    save_tokenizer,
    tokenizer_label,
)
from .encoded import (
    UNKNOWN_SPEAKER,
    CardMaker,
    EncodedSplit,
    check_alike,
    check_free,
    count_refused,
    keep_readme,
    read_refused,
    read_splits,
    remove_leftovers,
    remove_split,
    split_key,
    write_encoded_card,
    write_refused,
    write_splits,
)
from .recordings import Recordings, Refusal, RefusedRecording, describe_counts, find_recordings
from .shards import MAX_ROWS_PER_SHARD, shard_path, write_shard

logger = logging.getLogger(__name__)

ON_ERROR = ("skip", "refuse")
PORTION_CLIPS = 512  # clips in memory at a time, less where they are long
PORTION_BATCHES = 5  # ... of so many batches: enough clips to find others of the same length
MAX_FIT_CLIPS = 20_000  # clips that a tokenizer is fitted on: half a day of short sentences
ROWS_PER_SHARD_WITH_AUDIO = 2_000


def encode_recordings(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    split: str = "test",
    config: str | None = None,
    languages: Sequence[str] | None = None,
    audio_tokenizer: str | os.PathLike | None = None,
    num_units: int = 64,
    frame_rate_hz: float = 12.5,
    duration_penalty: float = 0.0,
    seed: int = 0,
    keep_audio: bool = False,
    speakers: Mapping[str, str] | None = None,
    licence: str | None = None,
    batch_seconds: float = 60.0,
    max_rows_per_shard: int | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
    make_card: CardMaker | None = None,
) -> EncodedSplit:
    """Write one split of a dataset of parallel rows: ids, units, text and metadata of recordings.

    Args:
        source, languages: as in `find_recordings`.
        output_dir: a new folder, or one that this function made: further splits and configs go beside the
            first and share its audio tokenizer.
        config: name of the config that the split belongs to; None: the dataset has one, without a name.
        audio_tokenizer: a Hub id, the folder of a ClsiUnitsModel or MimiModel, or the folder of a model that
            carries or names one. None: the embedded tokenizer in output_dir/audio_tokenizer; for the first
            split it is fitted on the recordings (at most 20,000 clips, drawn by `seed`) with `num_units`,
            `frame_rate_hz` and `duration_penalty`, and saved there.
        keep_audio: store the files as they are in `audio_<L>`.
        speakers, licence: who speaks each language, and the recordings' licence, for the rows (see
            `Recordings.attributed`).
        batch_seconds: audio that goes through the tokenizer at once.
        max_rows_per_shard: None: 100,000, with audio 2,000.
        on_error: "skip" leaves out what cannot be used and counts it; "refuse" stops at the first.
        overwrite: replace the split if it exists; a tokenizer that no other split uses is fitted anew.
        device: where to encode, for example "cuda"; None: the CPU.
        make_card: (name of the folder, finished splits) -> the dataset's card; None: what is known of any
            recordings.

    Returns:
        What was written. Units are plain frames (uint16, not deduplicated), the same as `encode_waveforms`
        gives for each clip by itself.

    Raises:
        RefusedRecording: with on_error="refuse". Finished shards stay and the same call goes on behind them.
        FileExistsError: the split exists, or the folder holds something else.
        ValueError: an unusable input or argument, a tokenizer or columns other than those of the splits that
            are there, or not one usable recording.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
    max_rows_per_shard = rows_per_shard(max_rows_per_shard, keep_audio)
    folder = Path(output_dir)
    if folder.resolve() in (Path(source).resolve(), Path(source).resolve().parent):
        raise ValueError(f"{folder} holds the input itself, whose README.md would be replaced; name another")
    splits, key = read_splits(folder), split_key(split, config)
    shard_path(folder, split, 0, 1, config)  # refuses names that no folder or file can have
    check_free(folder, splits, split, config, overwrite)
    found = find_recordings(source, languages).attributed(speakers, licence)
    if on_error == "refuse" and found.refused:
        raise RefusedRecording(found.refused[0])
    if found.ignored:
        logger.warning("ignored: %s", describe_counts(found.ignored))

    others = [each for name, each in splits.items() if name != key]
    before = splits.get(key)
    resuming = before is not None and before.shards_done > 0 and not overwrite
    own = folder / TOKENIZER_FOLDER
    fitting = audio_tokenizer is None and not (own.is_dir() and (others or resuming))
    fit: dict[str, Any] = {}
    if audio_tokenizer is not None:
        path = resolve_audio_tokenizer(audio_tokenizer)
        tokenizer = load_audio_tokenizer(path)
        # Without the folders above it, which are this machine's business.
        names = [part for part in Path(path).parts if part != Path(path).anchor]
        label, origin = tokenizer_label(tokenizer, path), f"loaded from {'/'.join(names[-2:])}"
    else:
        wanted = embedded_config(num_units, frame_rate_hz, duration_penalty)
        if fitting and others:
            raise ValueError(
                f"split {others[0].key!r} of {folder} was encoded by {others[0].audio_tokenizer}, "
                f"{others[0].tokenizer_origin}; name the same for this one (--audio-tokenizer)"
            )
        if fitting:
            tokenizer, origin = _fit(found, wanted, seed, on_error, progress)
            fit = fit_settings(num_units, frame_rate_hz, duration_penalty, seed)
        else:
            first = (others or [before])[0]
            tokenizer, origin, fit = _reuse(own, wanted), first.tokenizer_origin, first.fit
        label = tokenizer_label(tokenizer, None)
    columns = found.columns(keep_audio)
    check_alike(folder, others, label, columns, config)

    settings = settings_of(found, label, max_rows_per_shard, keep_audio)
    num_shards = -(-len(found.rows) // max_rows_per_shard)
    record = EncodedSplit(
        split, found.source, list(found.languages), columns, settings, label, origin,
        num_units_of(tokenizer), frame_rate_of(tokenizer), num_shards,
        config=config, fit=fit, speakers=dict(speakers or {}), licence_tag=licence,
    )  # fmt: skip
    for counts in (record.clips, record.seconds, record.units):
        counts.update(dict.fromkeys(found.languages, 0))
    record.ignored = dict(found.ignored)
    refused = list(found.refused)
    if resuming:
        if before.settings != settings:
            changed = [key for key, value in settings.items() if before.settings.get(key) != value]
            raise FileExistsError(
                f"{folder} holds an unfinished split {key!r}, made with other {', '.join(changed)}; "
                "give the same arguments to finish it, or overwrite it"
            )
        record = before
        done_rows = record.shards_done * max_rows_per_shard
        refused += [
            each for each in read_refused(folder, key) if each.index is not None and each.index < done_rows
        ]
        logger.info("going on with %s: %d of %d shards are there", folder, record.shards_done, num_shards)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, split, config)
    if not resuming:
        remove_split(folder, split, config)
    if fitting:
        save_tokenizer(tokenizer, own)
    keep_readme(found, folder, record)
    write_splits(folder, splits | {key: record})
    tokenizer.to(device or tokenizer.device)

    total = len(found.rows) * len(found.languages)
    skipped = record.shards_done * max_rows_per_shard * len(found.languages)
    with tqdm(total=total, initial=skipped, desc="recordings", unit="clip", disable=not progress) as bar:
        for shard in range(record.shards_done, num_shards):
            first = shard * max_rows_per_shard
            maker = _RowMaker(found, tokenizer, label, columns, batch_seconds, on_error, bar)
            rows = maker.rows(range(first, min(first + max_rows_per_shard, len(found.rows))))
            path = shard_path(folder, split, shard, num_shards, config)
            written = write_shard(rows, path, "parallel", columns, record.num_units)
            record.rows += written
            for language in found.languages:
                record.clips[language] += written
                record.seconds[language] += maker.seconds[language]
                record.units[language] += maker.units[language]
            refused += maker.refused
            record.shards_done = shard + 1
            write_refused(folder, key, refused, source)
            count_refused(record, refused)
            write_splits(folder, splits | {key: record})
    count_refused(record, refused)
    if not record.rows:
        remove_split(folder, split, config)
        write_refused(folder, key, refused, source)
        raise ValueError(
            f"none of the {len(found.rows)} recordings of {source} can be used "
            f"({describe_counts(record.refused)}); {folder / 'refused.jsonl'} lists them"
        )
    record.finished = True
    splits = splits | {key: record}
    write_encoded_card(folder, splits, make_card)
    write_splits(folder, splits)
    return record


# ---- What must be the same to go on


def rows_per_shard(asked: int | None, keep_audio: bool) -> int:
    """What was asked for, or the default."""
    if asked is None:
        return ROWS_PER_SHARD_WITH_AUDIO if keep_audio else MAX_ROWS_PER_SHARD
    if asked < 1:
        raise ValueError(f"max_rows_per_shard must be at least 1, got {asked}")
    return asked


def settings_of(found: Recordings, label: str | None, rows: int, keep_audio: bool) -> dict[str, Any]:
    """`EncodedSplit.settings`. label: of the audio tokenizer. rows: of a shard."""
    return {
        "recordings": _digest(found),
        "audio_tokenizer": label,
        "max_rows_per_shard": rows,
        "keep_audio": keep_audio,
    }


def fit_settings(num_units: int, frame_rate_hz: float, duration_penalty: float, seed: int) -> dict[str, Any]:
    """`EncodedSplit.fit`."""
    return {
        "num_units": num_units,
        "frame_rate_hz": frame_rate_hz,
        "duration_penalty": duration_penalty,
        "seed": seed,
    }


def _digest(found: Recordings) -> str:
    """SHA-256 of which rows an input holds, in order; it changes with any id, file name or text."""
    digest = hashlib.sha256(json.dumps(found.languages).encode())
    for row in found.rows:
        content = [row.id, row.sources, row.texts, dict(row.metadata)]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


# ---- The audio tokenizer


def _fit(
    found: Recordings, config: ClsiUnitsConfig, seed: int, on_error: str, progress: bool
) -> tuple[PreTrainedModel, str]:
    """Fit the embedded tokenizer on the recordings -> (tokenizer, what it was fitted on)."""
    clips = [(row, i) for row in range(len(found.rows)) for i in range(len(found.languages))]
    number = len(clips)
    if number > MAX_FIT_CLIPS:
        drawn = np.random.default_rng(seed).choice(number, MAX_FIT_CLIPS, replace=False)
        clips = [clips[i] for i in np.sort(drawn)]
    logger.info("fitting the embedded audio tokenizer (%d units) on this input", config.num_units)
    speech = _Speech(found, clips, config.sampling_rate, 1 / config.frame_rate, on_error)
    try:
        tokenizer = fit_units(speech, config, seed, progress=progress)
    except RefusedRecording:
        raise
    except ValueError as error:
        if not speech.refused:
            raise
        first = RefusedRecording(next(iter(speech.refused.values())))
        raise ValueError(
            f"{error} {len(speech.refused)} of {len(clips)} clips cannot be used; the first: {first}"
        ) from error
    origin = (
        f"fitted on this input ({len(clips) - len(speech.refused)} of {number} clips, "
        f"{', '.join(found.languages)}, seed {seed})"
    )
    return tokenizer, origin


def _reuse(folder: Path, config: ClsiUnitsConfig) -> PreTrainedModel:
    """The tokenizer that the dataset has already, if it is of the kind that is asked for."""
    tokenizer = load_audio_tokenizer(str(folder))
    for name in ("num_units", "frame_rate", "duration_penalty"):
        there, asked = getattr(tokenizer.config, name), getattr(config, name)
        if there != asked:
            raise ValueError(
                f"{folder} was fitted with {name} = {there}, not {asked}, and this dataset is made of its "
                "units; give the same value, or make another dataset"
            )
    logger.info("using the audio tokenizer that is in %s", folder)
    return tokenizer


# ---- Encoding


def _read_clip(
    found: Recordings, index: int, language: int, sampling_rate_hz: int, min_seconds: float
) -> np.ndarray:
    """One clip, float32 [n], or RefusedRecording."""
    row = found.rows[index]
    path = row.paths[language]
    try:
        return read_audio(path, sampling_rate_hz, min_seconds)[0]
    except AudioError as error:
        refusal = Refusal(row.id, error.reason, str(error), path, index)
    except OSError as error:
        refusal = Refusal(row.id, "unreadable", str(error), path, index)
    raise RefusedRecording(refusal)


class _Speech:
    """Waveforms of some clips, read anew on every pass; what cannot be used is left out and noted."""

    def __init__(
        self, found: Recordings, clips: list[tuple[int, int]], rate: int, min_seconds: float, on_error: str
    ):
        self.found, self.clips, self.rate, self.min_seconds = found, clips, rate, min_seconds
        self.on_error = on_error
        self.refused: dict[tuple[int, int], Refusal] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index, language in self.clips:
            try:
                yield _read_clip(self.found, index, language, self.rate, self.min_seconds)
            except RefusedRecording as error:
                if self.on_error == "refuse":
                    raise
                self.refused[index, language] = error.refusal


class _RowMaker:
    """Makes the rows of one shard, a portion of clips at a time, and counts what it made and refused."""

    def __init__(
        self,
        found: Recordings,
        tokenizer: PreTrainedModel,
        label: str,
        columns: Mapping[str, str],
        batch_seconds: float,
        on_error: str,
        bar: tqdm,
    ):
        self.found, self.tokenizer, self.label, self.columns = found, tokenizer, label, columns
        self.batch_seconds, self.on_error, self.bar = batch_seconds, on_error, bar
        self.seconds: Counter[str] = Counter()
        self.units: Counter[str] = Counter()
        self.refused: list[Refusal] = []

    def rows(self, indices: range) -> Iterator[dict[str, Any]]:
        rate, frame_seconds = sampling_rate_of(self.tokenizer), 1 / frame_rate_of(self.tokenizer)
        portion: list[tuple[int, list[np.ndarray]]] = []
        clips, seconds = 0, 0.0
        for index in indices:
            waveforms = []
            for language in range(len(self.found.languages)):
                try:
                    waveforms.append(_read_clip(self.found, index, language, rate, frame_seconds))
                except RefusedRecording as error:
                    if self.on_error == "refuse":
                        raise
                    self.refused.append(error.refusal)
            if len(waveforms) < len(self.found.languages):
                self.bar.update(len(self.found.languages))
                continue
            portion.append((index, waveforms))
            clips += len(waveforms)
            seconds += sum(map(len, waveforms)) / rate
            if clips >= PORTION_CLIPS or seconds >= PORTION_BATCHES * self.batch_seconds:
                yield from self._encode(portion, rate)
                portion, clips, seconds = [], 0, 0.0
        yield from self._encode(portion, rate)

    def _encode(self, portion: list[tuple[int, list[np.ndarray]]], rate: int) -> Iterator[dict[str, Any]]:
        flat = [waveform for _, waveforms in portion for waveform in waveforms]
        units = iter(encode_waveforms(flat, self.tokenizer, self.batch_seconds, progress=False))
        for index, waveforms in portion:
            recording = self.found.rows[index]
            row = {"story_id": recording.id, "speaker": UNKNOWN_SPEAKER, **recording.metadata}
            row["audio_tokenizer"] = self.label
            for i, language in enumerate(self.found.languages):
                sentence, duration = next(units), len(waveforms[i]) / rate
                row[f"units_{language}"] = [sentence]
                row[f"seconds_{language}"] = round(duration, 4)
                row[f"source_{language}"] = recording.sources[i]
                if f"text_{language}" in self.columns:
                    row[f"text_{language}"] = [recording.texts[i] or ""]
                if f"audio_{language}" in self.columns:
                    row[f"audio_{language}"] = [recording.paths[i]]  # read in when the row is written
                self.seconds[language] += duration
                self.units[language] += len(sentence)
            self.bar.update(len(waveforms))
            yield row
