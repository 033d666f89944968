"""Turns rows into the folders of WAV files that peers read, and scores into ZeroSpeech submissions.

    write_slamkit_folder         cloze rows -> <id>_mutual.wav, <id>_correct.wav, <id>_incorrect.wav
                                 pair rows -> <i>_<id>_correct.wav, <i+1>_<id>_incorrect.wav
    write_zerospeech_submission  scores -> lexical/dev.txt, one "<name> <score>" a line
    write_zerospeech_meta        who made what -> meta.yaml, which a submission must have

Every file appears whole or not at all. rows/readers.py reads the folders back.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..speech.audio import encode_audio, read_audio
from .readers import ZEROSPEECH_SUBSETS, ZEROSPEECH_TASKS, file_name_of
from .schema import id_column

SLAMKIT_RATE_HZ = 16_000
MAX_NAME_BYTES = 255
_LABELS = {"prompt": "mutual", "correct": "correct", "negative": "incorrect"}


def write_slamkit_folder(
    rows: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike,
    *,
    sampling_rate_hz: int | None = SLAMKIT_RATE_HZ,
) -> dict[str, int]:
    """Write one config of a dataset, with its audio, as slamkit's metrics read it: mono 16-bit WAV.

    The same call again, also after an interruption, writes only the files that are not there or differ.
    Texts go beside as `.txt`, which slamkit's cross-modal metric takes as the text prompt.

    Args:
        rows: cloze rows of one direction, or pair rows (their files are numbered in the order of the rows);
            audio as {"bytes", "path"} or bytes. An id that cannot be a file name is percent-encoded
            (`readers.file_name_of`), which the readers here undo.
        folder: is made if need be. It must hold no recordings but those of these rows, since peers read every
            file in it.
        sampling_rate_hz: slamkit's modelling metric ignores the rate of a file and takes it for 16,000 Hz, so
            that is the default. None: every file at its own rate. What resampling or a lossy format puts
            beyond full scale is cut off.

    Returns:
        {"items", "files", "written"}: rows, WAV files that they have, and how many of these were written now.

    Raises:
        ValueError: an id that is twice there, a row without audio or of another kind than the first, or,
            after writing, recordings in the folder that no row has.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    expected: set[str] = set()
    kind, items, written = None, 0, 0
    for row in rows:
        kind = kind or ("cloze" if "prompt_audio" in row else "pair")
        item_id = row.get(id_column(kind))
        if not isinstance(item_id, str) or not item_id:
            raise ValueError(f"row {items} has no id; expected {kind} rows, got the columns {sorted(row)}")
        if item_id in seen:
            raise ValueError(f"the id {item_id!r} comes twice; write one config (one direction) to a folder")
        seen.add(item_id)
        for side, label in _LABELS.items():
            if kind == "pair" and side == "prompt":
                continue
            stem = f"{file_name_of(item_id)}_{label}"
            if kind == "pair":
                stem = f"{2 * items + (side == 'negative')}_{stem}"
            wav = _to_wav(row, f"{side}_audio", item_id, sampling_rate_hz)
            written += _write_if_new(place / _checked(f"{stem}.wav", item_id), wav)
            if row.get(f"{side}_text"):
                _write_if_new(place / f"{stem}.txt", f"{row[f'{side}_text']}\n".encode())
            expected.add(f"{stem}.wav")
        items += 1
    others = sorted(name for name in os.listdir(place) if name.endswith(".wav") and name not in expected)
    if others:
        raise ValueError(
            f"{place} also holds {len(others)} WAV files that no row has ({', '.join(others[:3])}, ...); "
            "peers read every file of a folder: remove them, or write into an empty one"
        )
    return {"items": items, "files": len(expected), "written": written}


def write_zerospeech_submission(
    scores: Mapping[str, float] | Iterable[tuple[str, float]],
    folder: str | os.PathLike,
    task: str,
    subset: str,
    *,
    names: Iterable[str],
) -> Path:
    """Write the scores of one task and subset where the ZeroSpeech toolkits look for them.

    The file has a line "<name> <score>" for every recording, with one space; a score, higher for what is more
    likely, is written so that reading it gives the same float64.

    Args:
        scores: name of the WAV file without folder and suffix -> score (a log-probability, per unit or
            summed), as a mapping or as pairs.
        folder: of the submission: `lexical/dev.txt` goes into it.
        task: "lexical" or "syntactic". subset: "dev" or "test"; a complete submission has both of both.
        names: all names that must be scored: `readers.zerospeech_names`, or those of a gold.csv.

    Returns:
        The file.

    Raises:
        ValueError: a name that is missing, unknown, scored twice or has white space, or a score that is not
            finite; nothing is written then.
    """
    if task not in ZEROSPEECH_TASKS:
        raise ValueError(f"unknown task {task!r}; use one of {', '.join(ZEROSPEECH_TASKS)}")
    if subset not in ZEROSPEECH_SUBSETS:
        raise ValueError(f"unknown subset {subset!r}; use one of {', '.join(ZEROSPEECH_SUBSETS)}")
    expected = list(names)
    given = list(scores.items() if isinstance(scores, Mapping) else scores)
    values = {name: float(score) for name, score in given}
    found = {
        "are scored more than once": _repeated(name for name, _ in given),
        "are asked for more than once": _repeated(expected),
        "have no score": sorted(set(expected) - set(values)),
        "are no recordings of this set": sorted(set(values) - set(expected)),
        "have a score that is not finite": [
            name for name, score in values.items() if not math.isfinite(score)
        ],
        "are no plain names": [name for name in values if not name or len(name.split()) != 1 or "/" in name],
    }
    faults = [f"{len(bad)} {what} ({', '.join(map(repr, bad[:3]))})" for what, bad in found.items() if bad]
    if faults:
        raise ValueError(
            f"a submission for {task}/{subset} has every one of its {len(expected)} files once: "
            + "; ".join(faults)
        )
    path = Path(folder) / task / f"{subset}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_if_new(path, "".join(f"{name} {values[name]!r}\n" for name in expected).encode())
    return path


def write_zerospeech_meta(
    folder: str | os.PathLike,
    *,
    authors: str,
    institution: str,
    publication_year: int,
    system_description: str,
    train_set: str,
    open_source: bool,
    gpu_budget: str | None = None,
    author_label: str | None = None,
    paper_title: str | None = None,
    paper_url: str | None = None,
    team: str | None = None,
    code_url: str | None = None,
) -> Path:
    """Write the meta.yaml that the zrc toolkit asks of a submission to sLM21.

    The arguments without a default are required there; the toolkit fills in user name and ids itself, and
    makes a params.yaml with its defaults where there is none. (zerospeech2021-validate of 2021 wants other
    entries, for all four parts of the challenge: author, affiliation, description, open_source, train_set,
    visually_grounded, gpu_budget and the parameters of its phonetic and semantic parts.)
    """
    import yaml

    required = {
        "authors": authors,
        "institution": institution,
        "system_description": system_description,
        "train_set": train_set,
    }
    empty = [name for name, value in required.items() if not value or not value.strip()]
    if empty:
        raise ValueError(f"meta.yaml needs {', '.join(empty)}; the toolkit refuses empty ones")
    publication = {
        "author_label": author_label or authors.split(",")[0].strip(),
        "authors": authors,
        "paper_title": paper_title,
        "paper_url": paper_url,
        "publication_year": int(publication_year),
        "institution": institution,
        "team": team,
    }
    model = {"system_description": system_description, "train_set": train_set, "gpu_budget": gpu_budget}
    content = {
        "benchmark_name": "sLM21",
        "model_info": {name: value for name, value in model.items() if value is not None},
        "publication": {name: value for name, value in publication.items() if value is not None},
        "open_source": bool(open_source),
    }
    if code_url is not None:
        content["code_url"] = code_url
    path = Path(folder) / "meta.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_if_new(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return path


def _to_wav(row: Mapping[str, Any], column: str, item_id: str, sampling_rate_hz: int | None) -> bytes:
    audio = row.get(column)
    content = audio.get("bytes") if isinstance(audio, Mapping) else audio
    if not isinstance(content, bytes):
        raise ValueError(
            f"row {item_id!r} has no audio in {column}; expected {{'bytes', 'path'}} or bytes: read a config "
            "that has audio columns"
        )
    waveform, rate = read_audio(content, sampling_rate_hz, name=f"{column} of row {item_id!r}")
    return encode_audio(waveform, rate, "WAV", clip=True)


def _checked(name: str, item_id: str) -> str:
    # The temporary file beside it has nine characters more.
    if len(name.encode()) > MAX_NAME_BYTES - len(".partial") - 1:
        raise ValueError(f"the id {item_id!r} is too long for a file name ({name}); shorten it")
    return name


def _write_if_new(path: Path, content: bytes) -> bool:
    """Write a file whole or not at all, unless it has this content; says whether it was written."""
    try:
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return False
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return True


def _repeated(names: Iterable[str]) -> Sequence[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)
