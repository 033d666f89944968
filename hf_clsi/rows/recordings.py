"""Turns recordings, alone or paired across languages, into a Parquet dataset of parallel rows with units.

    find_recordings   a folder, metadata.jsonl or list of files -> `Recordings`: which file is which row
    encode_recordings `Recordings` -> data/<split>-*.parquet, README.md, refused.jsonl, encoding.json

A few minutes of audio are in memory at a time. Shards appear one by one, each whole or not at all, and
encoding.json says which are there: the same call after an interruption goes on behind the last one. What
cannot be used is listed in refused.jsonl, one line a file, and counted by reason:

    AudioError's reasons  missing, empty, not_audio, truncated, not_finite, too_short (less than one unit)
    unreadable            the operating system refuses to read the file
    bad_metadata          a line of metadata.jsonl that is no object, or has no id, or a field of another type
    incomplete            a line or a file without its counterpart in another language
    ambiguous             two files of one language with the same name but for the suffix
    duplicate_id          an id that an earlier row has
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..configuration_clsi_units import ClsiUnitsConfig
from ..speech.audio import FORMAT_OF_SUFFIX, AudioError, read_audio
from ..units.encode import (
    encode_waveforms,
    frame_rate_of,
    load_audio_tokenizer,
    num_units_of,
    sampling_rate_of,
)
from ..units.kmeans import fit_units
from .schema import METADATA, METADATA_PER_LANGUAGE, story_columns
from .shards import MAX_ROWS_PER_SHARD, register_split, shard_path, write_shard

logger = logging.getLogger(__name__)

ON_ERROR = ("skip", "refuse")
PORTION_CLIPS = 512  # clips in memory at a time, less where they are long
PORTION_BATCHES = 5  # ... of so many batches: enough clips to find others of the same length
MAX_FIT_CLIPS = 20_000  # clips that a tokenizer is fitted on: half a day of short sentences
ROWS_PER_SHARD_WITH_AUDIO = 2_000
TOKENIZER_FOLDER = "audio_tokenizer"
UNKNOWN_SPEAKER = "unknown"

_LANGUAGE_FOLDER = re.compile(r"[a-z]{2,3}([_-][A-Za-z0-9]+)*")
_PYTHON_TYPES = {"string": str, "int32": int, "int64": int}


@dataclass(frozen=True, slots=True)
class Recording:
    """One row to be. paths, texts and sources hold one entry a language.

    sources: where the row says its audio is from: what the metadata has, else the path inside the input.
    """

    id: str
    paths: tuple[str, ...]
    texts: tuple[str | None, ...]
    sources: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One file or line that cannot be used. index: its row's place in `Recordings.rows`, if it has one."""

    id: str
    reason: str
    message: str
    path: str | None = None
    index: int | None = None


class RefusedRecording(ValueError):
    """A recording cannot be used, and the caller wants none left out; `.refusal` says which and why."""

    def __init__(self, refusal: Refusal):
        super().__init__(refusal)
        self.refusal = refusal

    def __str__(self) -> str:
        each = self.refusal
        return f"recording {each.id!r} is refused ({each.reason}): {each.message}"


@dataclass(frozen=True)
class Recordings:
    """What an input holds.

    ignored: files that are no recordings, by suffix, and fields of metadata.jsonl that rows have no column
    for, with how often each was met. readme: the input's README.md, if it has one.
    """

    source: str
    languages: tuple[str, ...]
    rows: list[Recording]
    refused: list[Refusal]
    ignored: dict[str, int]
    readme: Path | None = None

    def columns(self, keep_audio: bool = False) -> dict[str, str]:
        """Columns of the rows; text and metadata only where some row has them."""
        having = {
            f"text_{language}": "texts"
            for i, language in enumerate(self.languages)
            if any(row.texts[i] is not None for row in self.rows)
        }
        types = _metadata_types(self.languages)
        present = {name for row in self.rows for name in row.metadata} - {"speaker"}
        having |= {name: kind for name, kind in types.items() if name in present}
        having |= {f"source_{language}": "string" for language in self.languages}
        having |= {f"seconds_{language}": "float64" for language in self.languages}
        having["audio_tokenizer"] = "string"
        return story_columns(self.languages, text=False, audio=keep_audio, extra=having)


@dataclass
class EncodedSplit:
    """One split of an encoded dataset, as encoding.json keeps it.

    settings: what must be the same for an interrupted encoding to go on. clips, seconds and units are of the
    rows that were written, by language. refused: files and lines by reason; rows_refused: rows lost by them.
    """

    split: str
    source: str
    languages: list[str]
    columns: dict[str, str]
    settings: dict[str, Any]
    audio_tokenizer: str
    tokenizer_origin: str
    num_units: int
    frame_rate_hz: float
    num_shards: int
    shards_done: int = 0
    finished: bool = False
    rows: int = 0
    rows_refused: int = 0
    clips: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    licence: str | None = None
    source_readme: str | None = None


def find_recordings(source: str | os.PathLike, languages: Sequence[str] | None = None) -> Recordings:
    """Find out which recordings an input holds and how they pair up; no audio is read.

    Args:
        source: one of
            - a metadata.jsonl or a folder with one. A line is an object with `id`, for every language L
              `audio_<L>` (a path relative to the file) and optionally `text_<L>`, and optionally `speaker`
              and the metadata of rows (`licence`, `voice_<L>`, ...). `duration_<L>` is measured anew.
            - a folder with a sub-folder for every language, whose files pair up by name: en/x.flac and
              fr/x.flac.
            - a folder of recordings of one language, searched with its sub-folders.
            - a text file with the path of a recording of one language on every line (relative to the text
              file; lines that are empty or start with # do not count), or one recording.
        languages: which, in the order of the columns. None: all that metadata.jsonl or the sub-folders name.
            The last two kinds of input do not say their one language; it must be given.

    Raises:
        ValueError: nothing to encode, a language that is not there, or one that must be named.
        FileNotFoundError: no such input.
    """
    place = Path(source)
    if not place.exists():
        raise FileNotFoundError(f"{place}: there is no such file or folder; check the path")
    if languages is not None:
        story_columns(languages)  # refuses what is no list of language codes
    if place.is_dir() and (place / "metadata.jsonl").is_file():
        found = _from_metadata(place / "metadata.jsonl", languages)
    elif place.is_dir():
        found = _from_folder(place, languages)
    elif place.suffix == ".jsonl":
        found = _from_metadata(place, languages)
    else:
        found = _from_list(place, languages)
    if not found.rows:
        reasons = _counts(Counter(refusal.reason for refusal in found.refused))
        raise ValueError(
            f"{place} holds no recording to encode ({reasons or 'nothing found'}); recordings are "
            f"{' '.join(FORMAT_OF_SUFFIX)} files, named by a metadata.jsonl, in one sub-folder a language, "
            "in one folder, or listed in a text file"
        )
    return found


def encode_recordings(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    split: str = "test",
    languages: Sequence[str] | None = None,
    audio_tokenizer: str | os.PathLike | None = None,
    num_units: int = 64,
    frame_rate_hz: float = 12.5,
    duration_penalty: float = 0.0,
    seed: int = 0,
    keep_audio: bool = False,
    batch_seconds: float = 60.0,
    max_rows_per_shard: int | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> EncodedSplit:
    """Write one split of a dataset of parallel rows: ids, units, text and metadata of recordings.

    Args:
        source, languages: as in `find_recordings`.
        output_dir: a new folder, or one that this function made: further splits go beside the first and share
            its audio tokenizer.
        audio_tokenizer: a Hub id, the folder of a ClsiUnitsModel or MimiModel, or the folder of a model that
            carries or names one. None: the embedded tokenizer in output_dir/audio_tokenizer; for the first
            split it is fitted on the recordings (at most 20,000 clips, drawn by `seed`) with `num_units`,
            `frame_rate_hz` and `duration_penalty`, and saved there.
        keep_audio: store the files as they are in `audio_<L>`.
        batch_seconds: audio that goes through the tokenizer at once.
        max_rows_per_shard: None: 100,000, with audio 2,000.
        on_error: "skip" leaves out what cannot be used and counts it; "refuse" stops at the first.
        overwrite: replace the split if it exists; a tokenizer that no other split uses is fitted anew.
        device: where to encode, for example "cuda"; None: the CPU.

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
    if max_rows_per_shard is None:
        max_rows_per_shard = ROWS_PER_SHARD_WITH_AUDIO if keep_audio else MAX_ROWS_PER_SHARD
    if max_rows_per_shard < 1:
        raise ValueError(f"max_rows_per_shard must be at least 1, got {max_rows_per_shard}")
    folder = Path(output_dir)
    if folder.resolve() in (Path(source).resolve(), Path(source).resolve().parent):
        raise ValueError(f"{folder} holds the input itself, whose README.md would be replaced; name another")
    splits = _read_splits(folder)
    _check_free(folder, splits, split, overwrite)
    found = find_recordings(source, languages)
    if on_error == "refuse" and found.refused:
        raise RefusedRecording(found.refused[0])
    if found.ignored:
        logger.warning("ignored: %s", _counts(found.ignored))

    others = [each for name, each in splits.items() if name != split]
    before = splits.get(split)
    resuming = before is not None and before.shards_done > 0 and not overwrite
    own = folder / TOKENIZER_FOLDER
    fitting = audio_tokenizer is None and not (own.is_dir() and (others or resuming))
    if audio_tokenizer is not None:
        path = resolve_audio_tokenizer(audio_tokenizer)
        tokenizer = load_audio_tokenizer(path)
        # Without the folders above it, which are this machine's business.
        label, origin = _label(tokenizer, path), f"loaded from {'/'.join(Path(path).parts[-2:])}"
    else:
        config = _embedded_config(num_units, frame_rate_hz, duration_penalty)
        if fitting and others:
            raise ValueError(
                f"split {others[0].split!r} of {folder} was encoded by {others[0].audio_tokenizer}, "
                f"{others[0].tokenizer_origin}; name the same for this one (--audio-tokenizer)"
            )
        if fitting:
            tokenizer, origin = _fit(found, config, seed, on_error, progress)
        else:
            tokenizer, origin = _reuse(own, config), (others or [before])[0].tokenizer_origin
        label = _label(tokenizer, None)
    columns = found.columns(keep_audio)
    _check_alike(folder, others, label, columns)

    settings = {
        "recordings": _digest(found),
        "audio_tokenizer": label,
        "max_rows_per_shard": max_rows_per_shard,
        "keep_audio": keep_audio,
    }
    num_shards = -(-len(found.rows) // max_rows_per_shard)
    record = EncodedSplit(
        split, found.source, list(found.languages), columns, settings, label, origin,
        num_units_of(tokenizer), frame_rate_of(tokenizer), num_shards,
    )  # fmt: skip
    for counts in (record.clips, record.seconds, record.units):
        counts.update(dict.fromkeys(found.languages, 0))
    record.ignored = dict(found.ignored)
    refused = list(found.refused)
    if resuming:
        if before.settings != settings:
            changed = [key for key, value in settings.items() if before.settings.get(key) != value]
            raise FileExistsError(
                f"{folder} holds an unfinished split {split!r}, made with other {', '.join(changed)}; "
                "give the same arguments to finish it, or overwrite it"
            )
        record = before
        done_rows = record.shards_done * max_rows_per_shard
        refused += [
            each for each in _read_refused(folder, split) if each.index is not None and each.index < done_rows
        ]
        logger.info("going on with %s: %d of %d shards are there", folder, record.shards_done, num_shards)
    folder.mkdir(parents=True, exist_ok=True)
    if not resuming:
        _remove_split(folder, split)
    if fitting:
        _save_tokenizer(tokenizer, own)
    _keep_readme(found, folder, record)
    _write_splits(folder, splits | {split: record})
    tokenizer.to(device or tokenizer.device)

    total = len(found.rows) * len(found.languages)
    skipped = record.shards_done * max_rows_per_shard * len(found.languages)
    with tqdm(total=total, initial=skipped, desc="recordings", unit="clip", disable=not progress) as bar:
        for shard in range(record.shards_done, num_shards):
            first = shard * max_rows_per_shard
            maker = _RowMaker(found, tokenizer, label, columns, batch_seconds, on_error, bar)
            rows = maker.rows(range(first, min(first + max_rows_per_shard, len(found.rows))))
            path = shard_path(folder, split, shard, num_shards)
            written = write_shard(rows, path, "parallel", columns, record.num_units)
            record.rows += written
            for language in found.languages:
                record.clips[language] += written
                record.seconds[language] += maker.seconds[language]
                record.units[language] += maker.units[language]
            refused += maker.refused
            record.shards_done = shard + 1
            _write_refused(folder, split, refused)
            _count_refused(record, refused)
            _write_splits(folder, splits | {split: record})
    _count_refused(record, refused)
    if not record.rows:
        _remove_split(folder, split)
        _write_refused(folder, split, refused)
        raise ValueError(
            f"none of the {len(found.rows)} recordings of {source} can be used ({_counts(record.refused)}); "
            f"{folder / 'refused.jsonl'} lists them"
        )
    record.finished = True
    splits = splits | {split: record}
    _write_card(folder, splits)
    _write_splits(folder, splits)
    return record


def resolve_audio_tokenizer(name_or_path: str | os.PathLike) -> str:
    """Where the audio tokenizer is: the argument itself, or what the model in that folder carries or names.

    A model's folder (`runs/x/models/interleave-ft`) has it in `audio_tokenizer/`, or names one on the Hub in
    its processor_config.json.
    """
    place = Path(name_or_path)
    if (place / TOKENIZER_FOLDER / "config.json").is_file():
        return str(place / TOKENIZER_FOLDER)
    if (place / "processor_config.json").is_file():
        processor = json.loads((place / "processor_config.json").read_text(encoding="utf-8"))
        reference = processor.get("audio_tokenizer_id")
        if reference:
            return str(place / reference) if reference.startswith("./") else reference
    return str(name_or_path)


# ---- Finding recordings


def _metadata_types(languages: Sequence[str]) -> dict[str, str]:
    """Fields of metadata.jsonl that rows keep -> their column types."""
    types = {"speaker": "string"} | {key: METADATA[key] for key in METADATA if key != "audio_tokenizer"}
    for language in languages:
        types |= {f"{key}_{language}": METADATA_PER_LANGUAGE[key] for key in ("voice", "licence", "source")}
    return types


def _from_metadata(file: Path, languages: Sequence[str] | None) -> Recordings:
    entries, refused = [], []
    available: dict[str, None] = {}  # in order of appearance
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                refused.append(Refusal(f"line {number}", "bad_metadata", f"not JSON: {error}", str(file)))
                continue
            entry_id = entry.get("id") if isinstance(entry, dict) else None
            if isinstance(entry_id, bool) or not isinstance(entry_id, (str, int)) or entry_id == "":
                message = f"every line is an object with an id, got {line.strip()[:80]}"
                refused.append(Refusal(f"line {number}", "bad_metadata", message, str(file)))
                continue
            entries.append((str(entry_id), entry))
            available |= {key.removeprefix("audio_"): None for key in entry if key.startswith("audio_")}
    missing = [language for language in languages or () if language not in available]
    if missing or not available:
        names = [f"audio_{language}" for language in missing or ("en",)]
        raise ValueError(
            f"no line of {file} has {', '.join(names)}, the path of a recording; it has audio in "
            f"{', '.join(available) or 'no language'}"
        )
    languages = tuple(languages or available)

    types = _metadata_types(languages)
    known = {"id"} | {f"{kind}_{key}" for kind in ("audio", "text", "duration") for key in available}
    known |= set(_metadata_types(tuple(available)))
    rows, seen, ignored = [], set(), Counter()
    for entry_id, entry in entries:
        ignored.update(f"field {key}" for key in entry if key not in known)
        reason, message = _fault(entry, languages, types)
        if entry_id in seen:
            reason, message = "duplicate_id", "an earlier line has the same id"
        if reason:
            refused.append(Refusal(entry_id, reason, message, str(file)))
            continue
        seen.add(entry_id)
        paths = [entry[f"audio_{language}"] for language in languages]
        metadata = {key: entry[key] for key in types if entry.get(key) is not None}
        rows.append(
            Recording(
                entry_id,
                tuple(str(file.parent / path) for path in paths),
                tuple(entry.get(f"text_{language}") for language in languages),
                tuple(
                    entry.get(f"source_{language}") or path
                    for language, path in zip(languages, paths, strict=True)
                ),
                {key: value for key, value in metadata.items() if not key.startswith("source_")},
            )
        )
    return Recordings(
        file.parent.resolve().name, languages, rows, refused, dict(ignored), _readme(file.parent)
    )


def _fault(entry: Mapping[str, Any], languages: Sequence[str], types: Mapping[str, str]) -> tuple[str, str]:
    """A line of metadata.jsonl -> (reason, message) of what is wrong with it, or empty strings."""
    without = [f"audio_{language}" for language in languages if entry.get(f"audio_{language}") in (None, "")]
    if without:
        return "incomplete", f"the line has no {', '.join(without)}"
    strings = {f"{kind}_{language}": "string" for kind in ("audio", "text") for language in languages}
    for key, kind in (strings | types).items():
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, _PYTHON_TYPES[kind])):
            return "bad_metadata", f"{key} must be {kind}, got {value!r}"
    return "", ""


def _from_folder(folder: Path, languages: Sequence[str] | None) -> Recordings:
    if languages is None:
        languages = _languages_of_folder(folder)
    present = [language for language in languages if (folder / language).is_dir()]
    if not present and len(languages) == 1:
        files, ignored = _files_under(folder)
        return _one_language(folder, languages[0], files, ignored)
    if len(present) < len(languages):
        missing = [language for language in languages if language not in present]
        raise ValueError(
            f"{folder} has no sub-folder {', '.join(missing)}; a folder without metadata.jsonl has one "
            "sub-folder a language, with the files of one sentence under the same name (en/x.flac, fr/x.flac)"
        )
    stems: list[dict[str, list[str]]] = []  # of each language: name without suffix -> paths inside `folder`
    ignored: Counter[str] = Counter()
    for language in languages:
        files, others = _files_under(folder / language)
        ignored += others
        stems.append({})
        for file in files:
            stems[-1].setdefault(os.path.splitext(file)[0], []).append(f"{language}/{file}")
    rows, refused = [], []
    for stem in sorted(set().union(*stems)):
        candidates = [names.get(stem, []) for names in stems]
        if max(map(len, candidates)) > 1:
            several = next(paths for paths in candidates if len(paths) > 1)
            refused.append(Refusal(stem, "ambiguous", f"which of {' and '.join(several)}?", str(folder)))
        elif min(map(len, candidates)) == 0:
            without = [lang for lang, paths in zip(languages, candidates, strict=True) if not paths]
            refused.append(Refusal(stem, "incomplete", f"no file in {', '.join(without)}/", str(folder)))
        else:
            names = [paths[0] for paths in candidates]
            paths = tuple(str(folder / name) for name in names)
            rows.append(Recording(stem, paths, (None,) * len(paths), tuple(names)))
    return Recordings(folder.resolve().name, tuple(languages), rows, refused, dict(ignored), _readme(folder))


def _languages_of_folder(folder: Path) -> list[str]:
    """The sub-folders that hold recordings, if all of them are named like languages."""
    if any(_is_recording(child.name) for child in folder.iterdir() if child.is_file()):
        raise ValueError(f"{folder} holds recordings, but in which language? Name it: --languages en")
    holding = sorted(child.name for child in folder.iterdir() if child.is_dir() and _files_under(child)[0])
    if not holding:
        raise ValueError(
            f"{folder} holds neither a metadata.jsonl nor recordings ({' '.join(FORMAT_OF_SUFFIX)} files)"
        )
    strangers = [name for name in holding if not _LANGUAGE_FOLDER.fullmatch(name)]
    if strangers:
        raise ValueError(
            f"sub-folders of {folder} that hold recordings are named after their languages (en, fr), but "
            f"there is {strangers[0]!r}; name the languages to use: --languages en,fr, or --languages en if "
            "all recordings are in one"
        )
    return holding


def _from_list(file: Path, languages: Sequence[str] | None) -> Recordings:
    if languages is None or len(languages) != 1:
        got = "none" if languages is None else ", ".join(languages)
        raise ValueError(
            f"{file} is read as a list of recordings of one language, which must be named (--languages en); "
            f"got {got}. Recordings in several languages are paired by a metadata.jsonl or by sub-folders"
        )
    if _is_recording(file.name):
        return _one_language(file.parent, languages[0], [file.name], Counter())
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is neither a recording by its suffix ({' '.join(FORMAT_OF_SUFFIX)}) nor a text file "
            f"that lists recordings ({error})"
        ) from error
    names = [line.strip() for line in lines]
    names = [name for name in names if name and not name.startswith("#")]
    return _one_language(file.parent, languages[0], names, Counter())


def _one_language(folder: Path, language: str, files: list[str], ignored: Counter[str]) -> Recordings:
    """Paths of files, relative to the folder or absolute -> rows named after them, without suffix."""
    rows, refused, seen = [], [], {}
    for file in files:
        path = folder / file
        inside = path.is_relative_to(folder)
        name = path.relative_to(folder).as_posix() if inside else path.as_posix()
        row_id = os.path.splitext(name)[0]
        if row_id in seen:
            message = f"the same name without suffix as {seen[row_id]}"
            refused.append(Refusal(row_id, "duplicate_id", message, str(path)))
        else:
            seen[row_id] = name
            rows.append(Recording(row_id, (str(path),), (None,), (name,)))
    return Recordings(folder.resolve().name, (language,), rows, refused, dict(ignored), _readme(folder))


def _files_under(folder: Path) -> tuple[list[str], Counter[str]]:
    """Sorted paths of the recordings in a folder and its sub-folders, and the other files by suffix."""
    files, others = [], Counter()
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where, name).relative_to(folder)
            if _is_recording(name):
                files.append(path.as_posix())
            elif not name.startswith(".") and path.as_posix() != "README.md":
                others[f"{path.suffix or name} files"] += 1
    return sorted(files), others


def _is_recording(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in FORMAT_OF_SUFFIX


def _readme(folder: Path) -> Path | None:
    return folder / "README.md" if (folder / "README.md").is_file() else None


# ---- The audio tokenizer


def _embedded_config(num_units: int, frame_rate_hz: float, duration_penalty: float) -> ClsiUnitsConfig:
    rate = ClsiUnitsConfig.sampling_rate
    if not frame_rate_hz > 0 or rate % frame_rate_hz:
        raise ValueError(f"frame_rate_hz must divide {rate} Hz into whole samples, got {frame_rate_hz}")
    return ClsiUnitsConfig(
        hop_length=int(rate / frame_rate_hz), num_units=num_units, duration_penalty=duration_penalty
    )


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


def _save_tokenizer(tokenizer: PreTrainedModel, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.partial")
    for path in (temporary, folder):
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, folder)


def _label(tokenizer: PreTrainedModel, name: str | None) -> str:
    """What rows say of their tokenizer: the embedded one has no name of its own but a digest."""
    if tokenizer.config.model_type == "clsi_units":
        penalty = tokenizer.config.duration_penalty  # it changes units, but is no part of the codebook
        with_penalty = f", duration penalty {penalty:g}" if penalty else ""
        return f"hf_clsi embedded, sha256 {tokenizer.codebook_digest()}{with_penalty}"
    return str(name)


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


# ---- What lies beside the shards


def _read_splits(folder: Path) -> dict[str, EncodedSplit]:
    """The splits of encoding.json, finished or not."""
    file = folder / "encoding.json"
    if not file.is_file():
        return {}
    splits = json.loads(file.read_text(encoding="utf-8"))
    return {name: EncodedSplit(**values) for name, values in splits.items()}


def _write_splits(folder: Path, splits: Mapping[str, EncodedSplit]) -> None:
    content = {name: asdict(record) for name, record in splits.items()}
    _replace(folder / "encoding.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def _shards_of(folder: Path, split: str) -> list[Path]:
    place = shard_path(folder, split, 0, 1)
    name = re.compile(rf"{re.escape(split)}-\d{{5,}}-of-\d{{5,}}\.parquet")
    return [path for path in place.parent.glob("*.parquet") if name.fullmatch(path.name)]


def _check_free(folder: Path, splits: Mapping[str, EncodedSplit], split: str, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the dataset")
    if (folder / "README.md").exists() and not (folder / "encoding.json").exists():
        raise FileExistsError(f"{folder} holds a README.md of something else; name a new folder")
    there = splits[split].finished if split in splits else bool(_shards_of(folder, split))
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} holds the split {split!r} already; overwrite it (--overwrite), or name another split "
            "or folder"
        )


def _check_alike(
    folder: Path, others: Sequence[EncodedSplit], label: str, columns: Mapping[str, str]
) -> None:
    """Splits of one dataset have the same tokenizer and the same columns."""
    for other in others:
        if other.audio_tokenizer != label:
            raise ValueError(
                f"split {other.split!r} of {folder} was encoded by {other.audio_tokenizer}, this one would "
                f"be by {label}: their units mean different things. Make another dataset, or use the same "
                "tokenizer"
            )
        if other.columns != columns:
            names = ", ".join(sorted(set(other.columns) ^ set(columns)))
            raise ValueError(
                f"split {other.split!r} of {folder} has other columns ({names} in one of the two only); "
                "splits of one dataset have the same. Make another dataset"
            )


def _remove_split(folder: Path, split: str) -> None:
    for path in _shards_of(folder, split):
        path.unlink()
    splits = _read_splits(folder)
    if splits.pop(split, None) is not None:
        _write_splits(folder, splits)
    _write_refused(folder, split, [])


def _read_refused(folder: Path, split: str | None = None) -> list[Refusal]:
    return [Refusal(**line) for where, line in _refused_lines(folder) if where == split]


def _refused_lines(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines of refused.jsonl as (split, the rest)."""
    file = folder / "refused.jsonl"
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(line.pop("split"), line) for line in lines]


def _write_refused(folder: Path, split: str, refused: Sequence[Refusal]) -> None:
    """Replace the split's lines of refused.jsonl; without any line there is no file."""
    lines = [{"split": name, **line} for name, line in _refused_lines(folder) if name != split]
    lines += [{"split": split, **asdict(refusal)} for refusal in refused]
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _replace(folder / "refused.jsonl", text)
    else:
        (folder / "refused.jsonl").unlink(missing_ok=True)


def _count_refused(record: EncodedSplit, refused: Sequence[Refusal]) -> None:
    record.refused = dict(sorted(Counter(refusal.reason for refusal in refused).items()))
    with_place = {refusal.index for refusal in refused if refusal.index is not None}
    record.rows_refused = len(with_place) + sum(refusal.index is None for refusal in refused)


def _digest(found: Recordings) -> str:
    """SHA-256 of which rows an input holds, in order; it changes with any id, file name or text."""
    digest = hashlib.sha256(json.dumps(found.languages).encode())
    for row in found.rows:
        content = [row.id, row.sources, row.texts, dict(row.metadata)]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _counts(counts: Mapping[str, int]) -> str:
    """{"not_audio": 2, "empty": 1} -> "not_audio 2, empty 1"."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _keep_readme(found: Recordings, folder: Path, record: EncodedSplit) -> None:
    """Copy the input's README.md, which says whose the recordings are, and note its licence."""
    if found.readme is None:
        return
    content = found.readme.read_bytes()
    copy = folder / "SOURCE_README.md"
    if copy.exists() and copy.read_bytes() != content:
        copy = folder / f"SOURCE_README_{record.split}.md"
    copy.write_bytes(content)
    record.source_readme = copy.name
    line = re.search(r"^\W*licen[cs]e\b.*$", content.decode("utf-8", "replace"), re.MULTILINE | re.IGNORECASE)
    record.licence = line[0].strip() if line else None


def _licence_tag(licences: Sequence[str | None]) -> str | None:
    """The licence lines of all splits -> the Hub's tag, if they agree on one Creative Commons licence."""
    tags = set()
    for line in licences:
        match = re.search(r"\bCC[ -](BY(?:-(?:NC|SA|ND))*)[ -](\d\.\d)", line or "", re.IGNORECASE)
        tags.add(f"cc-{match[1]}-{match[2]}".lower() if match else None)
    return tags.pop() if len(tags) == 1 else None


def _write_card(folder: Path, splits: Mapping[str, EncodedSplit]) -> None:
    """README.md: what each split holds, how it was made, whose the recordings are, and the `configs:`."""
    import yaml

    finished = [record for record in splits.values() if record.finished]
    first = finished[0]
    header: dict[str, Any] = {"language": first.languages, "tags": ["speech", "audio-units", "hf_clsi"]}
    tag = _licence_tag([record.licence for record in finished])
    if tag:
        header = {"license": tag, **header}
    name = folder.resolve().name
    table = [
        f"| {record.split} | {record.rows:,} | {language} | {record.seconds[language] / 60:,.1f} | "
        f"{record.units[language]:,} | {record.rows_refused:,} |"
        for record in finished
        for language in record.languages
    ]
    sources = [
        f"- {record.split}: {record.source}; "
        + (f"{record.licence} " if record.licence else "")
        + (
            f"See [{record.source_readme}]({record.source_readme}), the README of the recordings; its "
            "licence and attribution hold for this dataset."
            if record.source_readme
            else "the input has no README.md: find out whose the recordings are before passing them on."
        )
        for record in finished
    ]
    what = "sentence pairs" if len(first.languages) == 2 else "sentences"
    loss = (
        " Files that could not be used are listed in refused.jsonl."
        if any(r.refused for r in finished)
        else ""
    )
    body = f"""
# {name}

Recorded {what} ({", ".join(first.languages)}) as discrete speech units, made by `hf-clsi encode`.
One row is one sentence in every language: `story_id`, `speaker`, and for each language L `units_L` (a list
with one sentence of unit ids, uint16, one id a frame, repetitions kept), `seconds_L` (length of the
recording), `source_L`, and, where they are known or were asked for, `text_L` and `audio_L`.

| split | rows | language | minutes | units | rows refused |
|---|---|---|---|---|---|
{chr(10).join(table)}

## How it was made
Audio tokenizer: {first.audio_tokenizer}; {first.tokenizer_origin}.
{first.num_units:,} units, {first.frame_rate_hz:g} a second; every recording was mixed to one channel,
resampled, and padded with zeros to whole frames.{loss}

## Where the recordings are from
{chr(10).join(sources)}

## Loading
```python
from datasets import load_dataset

rows = load_dataset("{name}", split="{first.split}")  # the path of this folder, or its id on the Hub
rows[0]["units_{first.languages[0]}"][0]  # the ids of the first sentence
```
"""
    text = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{body}"
    _replace(folder / "README.md", text)
    for record in finished:
        register_split(folder, record.split, record.num_shards)
