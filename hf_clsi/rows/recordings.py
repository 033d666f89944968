"""Finds out which recordings an input holds, and which belong to one row: alone or paired across languages.

No audio is read here; encoding.py turns `Recordings` into a dataset. What cannot be used is a `Refusal`:

    bad_metadata          a line of metadata.jsonl that is no object, or has no id, or a field of another type
    incomplete            a line or a file without its counterpart in another language
    ambiguous             two files of one language with the same name but for the suffix
    duplicate_id          an id that an earlier row has
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..speech.audio import FORMAT_OF_SUFFIX
from .schema import METADATA, METADATA_PER_LANGUAGE, story_columns

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

    def attributed(self, speakers: Mapping[str, str] | None = None, licence: str | None = None) -> Recordings:
        """The same recordings, whose rows say who speaks and under which licence, unless they do already.

        Args:
            speakers: language -> person. They are the row's `voice_<L>`, and all of them its `speaker`.
            licence: for the `licence_<L>` of every language.

        Raises:
            ValueError: the speaker of a language that is not there, or without a name.
        """
        speakers = dict(speakers or {})
        for language, speaker in speakers.items():
            if language not in self.languages or not speaker:
                raise ValueError(
                    f"speakers has {speaker!r} for {language}; name persons for {', '.join(self.languages)}"
                )
        said: dict[str, str] = {}
        if len(speakers) == len(self.languages):
            said["speaker"] = "; ".join(dict.fromkeys(speakers[language] for language in self.languages))
        said |= {f"voice_{code}": speakers[code] for code in self.languages if code in speakers}
        said |= {f"licence_{code}": licence for code in self.languages if licence}
        return replace(self, rows=[replace(row, metadata=said | dict(row.metadata)) for row in self.rows])


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
        reasons = describe_counts(Counter(refusal.reason for refusal in found.refused))
        raise ValueError(
            f"{place} holds no recording to encode ({reasons or 'nothing found'}); recordings are "
            f"{' '.join(FORMAT_OF_SUFFIX)} files, named by a metadata.jsonl, in one sub-folder a language, "
            "in one folder, or listed in a text file"
        )
    return found


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


def describe_counts(counts: Mapping[str, int]) -> str:
    """{"not_audio": 2, "empty": 1} -> "not_audio 2, empty 1"."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
