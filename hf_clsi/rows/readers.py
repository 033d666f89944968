"""Turns spoken benchmarks as others publish them into drafts: which file is which side. No audio is decoded.

| reader | what it reads | drafts |
|---|---|---|
| `read_spoken_storycloze` | `<i>_<story>_correct.wav`, `<i+1>_<story>_incorrect.wav`: whole stories | pair |
| `read_slamkit_cloze` | `<base>_mutual.wav`, `<base>_correct.wav`, `<base>_incorrect.wav` (slamkit) | cloze |
| `read_multispeaker_storycloze` | Parquet in `sSC/<speaker>/`, `tSC/<speaker>/` (slprl) | pair |
| `read_spoken_swag` | Parquet with `prompt`, `chosen`, `rejected` (slprl/SpokenSwag) | cloze |
| `read_zerospeech` | `lexical/dev/*.wav` with gold.csv (ZeroSpeech 2021: sWUGGY, sBLIMP) | pair |

A reader checks its arguments when it is called and then yields one draft at a time. `read_recording` gets
the bytes of one utterance, in the worker that wants them. What is left out is added to the caller's `Drops`:

    missing       a file that gold.csv names, or an audio cell of a Parquet row, is not there
    incomplete    a file, or a row of gold.csv, without its counterpart
    ambiguous     several rows of gold.csv for one side of one pair
    duplicate_id  an id that an earlier draft has
    bad_name      a recording whose name does not fit the layout
    unlisted      a recording that gold.csv does not name
"""

from __future__ import annotations

import csv
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..speech.audio import FORMAT_OF_SUFFIX, AudioError
from ..text.drops import Drops
from .drafts import Draft, Side
from .shards import STREAMING

UNKNOWN_SPEAKER = "unknown"
#: Folder of slprl/multispeaker-storycloze -> task: the dataset's own wrong ending, or that of another story.
STORYCLOZE_FOLDERS = {"sSC": "storycloze", "tSC": "topiccloze"}
STORYCLOZE_COLUMNS = ("id", "correct_text", "correct_audio", "negative_text", "negative_audio")
SWAG_COLUMNS = ("speaker", "prompt_text", "chosen_text", "rejected_text", "prompt", "chosen", "rejected")
#: Part of ZeroSpeech 2021 -> (what its rows are called here, the columns of its gold.csv).
ZEROSPEECH_TASKS = {
    "lexical": (
        "swuggy",
        ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct"),
    ),
    "syntactic": ("sblimp", ("filename", "id", "voice", "type", "subtype", "transcription", "correct")),
}
ZEROSPEECH_SUBSETS = ("dev", "test")
LAYOUTS = {
    "spoken-storycloze": "a folder of <i>_<story>_correct.wav and <i+1>_<story>_incorrect.wav",
    "slamkit-cloze": "a folder of <base>_mutual.wav, <base>_correct.wav and <base>_incorrect.wav",
    "multispeaker-storycloze": "sSC/<speaker>/*.parquet and tSC/<speaker>/*.parquet with the columns "
    + ", ".join(STORYCLOZE_COLUMNS),
    "spoken-swag": "*.parquet with the columns " + ", ".join(SWAG_COLUMNS),
    "zerospeech": "lexical/{dev,test} and syntactic/{dev,test} with *.wav and gold.csv",
}
HUB_IDS = {
    "slprl/multispeaker-storycloze": "multispeaker-storycloze",
    "slprl/SpokenSwag": "spoken-swag",
}

_STORY_FILE = re.compile(r"(?P<index>\d+)_(?P<story>.+)_(?P<label>correct|incorrect)\.wav")
_CLOZE_FILE = re.compile(r"(?P<base>.+)_(?P<label>mutual|correct|incorrect)\.wav")
_CLOZE_SIDES = {"mutual": "prompt", "correct": "correct", "incorrect": "negative"}
_SHARD = re.compile(r"(?P<split>\w+)-\d+-of-\d+\.parquet")
_TEXT_BATCH_ROWS = 1024
_AUDIO_BATCH_ROWS = 8  # encoded recordings in memory at a time, a column


def read_spoken_storycloze(
    source: str | os.PathLike,
    drops: Drops,
    *,
    task: str = "storycloze",
    language: str = "en",
    speaker: str = UNKNOWN_SPEAKER,
) -> Iterator[Draft]:
    """Read a folder of the Spoken StoryCloze benchmark (Hassid et al. 2023) -> pairs of whole stories.

    Args:
        source: a flat folder, or one with a sub-folder of such files for every speaker (as slamkit reads with
            `subfolder: true`). Files are paired in the order of their leading integer, as the peers do, and
            must also agree in the story's id; a `.txt` beside a file is its text.
        task: "storycloze" or "topiccloze"; the names of the files do not tell.
        speaker: of a flat folder; a sub-folder is named after its own.
    """
    folders = _folders_with_wav(source, "spoken-storycloze")
    return _stories(folders, drops, task, language, speaker)


def read_slamkit_cloze(
    source: str | os.PathLike,
    drops: Drops,
    *,
    task: str = "storycloze",
    language: str = "en",
    speaker: str = UNKNOWN_SPEAKER,
) -> Iterator[Draft]:
    """Read slamkit's cross-modal StoryCloze files -> cloze items whose prompt is one recording.

    The arguments are those of `read_spoken_storycloze`. `mutual` is the prompt, `incorrect` the negative.
    """
    folders = _folders_with_wav(source, "slamkit-cloze")
    return _cloze_items(folders, drops, task, language, speaker)


def read_multispeaker_storycloze(
    source: str | os.PathLike,
    drops: Drops,
    *,
    task: str | None = None,
    speakers: Sequence[str] | None = None,
    language: str = "en",
) -> Iterator[Draft]:
    """Read slprl/multispeaker-storycloze -> pairs of whole stories; speaker and task come from the folders.

    Args:
        source: the Hub id, a copy of it, its folder `sSC` or `tSC`, or the folder of one speaker in these.
        task: "storycloze" (sSC) or "topiccloze" (tSC). None: both.
        speakers: names of folders. None: all.
    """
    if task is not None and task not in STORYCLOZE_FOLDERS.values():
        raise ValueError(f"unknown task {task!r}; use one of {', '.join(STORYCLOZE_FOLDERS.values())}")
    folders = [folder for folder, its_task in STORYCLOZE_FOLDERS.items() if task in (None, its_task)]
    root = _local_copy(source, [f"{folder}/{each}/*" for folder in folders for each in speakers or ["*"]])
    shards = []
    for file in _parquet_files(root, "multispeaker-storycloze"):
        folder, its_speaker = _storycloze_place(file)
        if folder in folders and (speakers is None or its_speaker in speakers):
            shards.append((file, folder, its_speaker))
    absent = set(speakers or ()) - {its_speaker for _, _, its_speaker in shards}
    if absent or not shards:
        raise ValueError(
            f"{source} has no Parquet file for {', '.join(folders)}"
            + (f" and the speakers {sorted(absent)}" if absent else "")
            + f"; expected {LAYOUTS['multispeaker-storycloze']}"
        )
    for file, _, _ in shards:
        _check_parquet(file, STORYCLOZE_COLUMNS, ("correct_audio", "negative_audio"))
    return _multispeaker_pairs(shards, drops, language)


def read_spoken_swag(
    source: str | os.PathLike, drops: Drops, *, split: str | None = None, language: str = "en"
) -> Iterator[Draft]:
    """Read slprl/SpokenSwag -> cloze items.

    `chosen` and `rejected` hold the continuation alone: the corpus takes SWAG's first sentence as the prompt
    and its right and one wrong suffix as the two (Slam, arXiv 2502.15814, section 4.4). The rows have no id;
    a draft's is its split and the row's place in it, `train/00012`.

    Args:
        source: the Hub id, a copy of it, or Parquet files of it in one folder or alone.
        split: "train" or "validation", as the names of the files say. None: all.
    """
    root = _local_copy(source, ["*.parquet"] if split is None else [f"*{split}-*.parquet"])
    shards = []
    for file in _parquet_files(root, "spoken-swag"):
        name = _SHARD.fullmatch(file.name)
        its_split = name["split"] if name else file.stem
        if split in (None, its_split):
            shards.append((file, its_split))
    if not shards:
        raise ValueError(f"{source} has no Parquet file {split}-*.parquet; leave split out, or correct it")
    for file, _ in shards:
        _check_parquet(file, SWAG_COLUMNS, ("prompt", "chosen", "rejected"))
    return _swag_items(shards, drops, language)


def read_zerospeech(
    source: str | os.PathLike, drops: Drops, *, task: str, subset: str = "dev", language: str = "en"
) -> Iterator[Draft]:
    """Read a local copy of ZeroSpeech 2021 (sLM21) -> a pair for every item and voice.

    An item whose voices differ in number just has fewer pairs. Text is the word or the transcription; where
    a non-word has none it is "", and `negative_phones` says what it is.

    Args:
        source: the folder with `lexical` and `syntactic`, one of these, or its `dev` or `test`.
        task: "lexical" (sWUGGY) or "syntactic" (sBLIMP).
        subset: "dev" or "test". The release of the challenge has no gold.csv for test; without one nothing
            says which files are a pair (`zerospeech_names` lists what a submission must score).

    Raises:
        FileNotFoundError: no such folder, or no gold.csv. ValueError: as in `read_gold`.
    """
    folder = zerospeech_folder(source, task, subset)
    gold_file = folder / "gold.csv"
    if not gold_file.is_file():
        raise FileNotFoundError(
            f"{folder} has no gold.csv, which says which files are a pair. The release of the 2021 challenge "
            "has it for dev only, the sLM21-dataset of the zrc toolkit also for test; submissions for a set "
            "without it need only the names of its files (zerospeech_names)"
        )
    gold = read_gold(gold_file)
    if gold.task != task:
        raise ValueError(f"{gold_file} has the columns of the {gold.task} task, {task} was asked for")
    return _zerospeech_pairs(gold, folder, drops, subset, language)


#: Name, as `find_reader` gives it -> reader.
READERS: dict[str, Callable[..., Iterator[Draft]]] = {
    "spoken-storycloze": read_spoken_storycloze,
    "slamkit-cloze": read_slamkit_cloze,
    "multispeaker-storycloze": read_multispeaker_storycloze,
    "spoken-swag": read_spoken_swag,
    "zerospeech": read_zerospeech,
}


def find_reader(source: str | os.PathLike) -> str:
    """Which of `READERS` reads this file, folder or Hub id, told by the names of its files and columns.

    Raises:
        FileNotFoundError: no such file or folder. ValueError: none of the layouts; the message lists them.
    """
    place = Path(source)
    if not place.exists():
        if str(source) in HUB_IDS:
            return HUB_IDS[str(source)]
        raise FileNotFoundError(
            f"{place}: there is no such file or folder; Hub ids that are known: {', '.join(HUB_IDS)}"
        )
    name = None
    if place.is_dir():
        name = _layout_of_folder(place)
    elif place.suffix == ".parquet":
        name = _layout_of_parquet(place)
    if name is None:
        known = "\n".join(f"  {name}: {layout}" for name, layout in LAYOUTS.items())
        raise ValueError(f"{place} has none of the layouts that can be read:\n{known}")
    return name


# Recordings: from a draft's reference to the bytes of a file.


def read_recording(reference: str | os.PathLike | dict[str, Any]) -> bytes:
    """The encoded audio that a draft refers to: by a path, or {"path", "column", "row"} inside Parquet.

    Parquet is read forward, a few rows at a time, and stays open for the next call (in each thread the last
    file): rows in their order cost one pass over the file. Going back starts the row group anew.

    Raises:
        AudioError: with reason "missing" where the file, or the audio of that row, is not there.
    """
    if not isinstance(reference, dict):
        return _file_bytes(os.fspath(reference), recording_name(reference))
    cell = _cursor(reference["path"], reference["column"]).cell(reference["row"])
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and path:
            return _file_bytes(Path(reference["path"]).parent / path, recording_name(reference))
    else:
        content = cell
    if content is None:
        raise AudioError(
            recording_name(reference), "missing", "the row has no audio; leave it out or complete the file"
        )
    return content


def recording_name(reference: str | os.PathLike | dict[str, Any]) -> str:
    """What to call a recording in messages and in the rows: its file's name, in Parquet with column and row.

    >>> recording_name({"path": "sSC/bm/train-00000-of-00001.parquet", "column": "correct_audio", "row": 4})
    'train-00000-of-00001.parquet:correct_audio:4'
    """
    if isinstance(reference, dict):
        return f"{Path(reference['path']).name}:{reference['column']}:{reference['row']}"
    return Path(reference).name


# ZeroSpeech: gold.csv.


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One file of a gold.csv.

    filename: as submissions name it, without folder and suffix. text: the word or the transcription, "" where
    it has none. frequency: occurrences in LibriSpeech, 0 for a word that is not in it, None for a non-word.
    length: phones. type, subtype: the phenomenon. What the task's file has no column for is left empty.
    """

    filename: str
    id: str
    voice: str
    correct: bool
    text: str
    frequency: int | None = None
    phones: str = ""
    length: int | None = None
    type: str = ""
    subtype: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """The item, the same for all of its voices: its id, of sBLIMP with type and subtype before it."""
        return (self.type, self.subtype, self.id) if self.type else (self.id,)


@dataclass(frozen=True, slots=True)
class GoldPair:
    """The right and the wrong file of one item in one voice."""

    key: tuple[str, ...]
    voice: str
    correct: GoldRow
    negative: GoldRow


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold.csv. task: "lexical" or "syntactic"."""

    task: str
    rows: list[GoldRow]

    def pairs(self, drops: Drops, subset: str | None = None) -> Iterator[GoldPair]:
        """Pairs in order of appearance; sides that are alone ("incomplete") or several ("ambiguous") drop.

        subset: goes before the ids of what is dropped, as it does in drafts.
        """
        sides: dict[tuple, tuple[list[GoldRow], list[GoldRow]]] = {}
        for row in self.rows:
            sides.setdefault((row.key, row.voice), ([], []))[row.correct].append(row)
        for (key, voice), (negative, correct) in sides.items():
            if len(correct) == len(negative) == 1:
                yield GoldPair(key, voice, correct[0], negative[0])
                continue
            names = ", ".join(row.filename for row in correct + negative)
            reason = "ambiguous" if max(len(correct), len(negative)) > 1 else "incomplete"
            found = f"{len(correct)} right and {len(negative)} wrong files, one of each is a pair ({names})"
            drops.add(_inside(subset, "/".join((*key, voice))), reason, found)


def read_gold(path: str | os.PathLike) -> Gold:
    """Read a gold.csv of ZeroSpeech 2021; its columns say of which task it is.

    Raises:
        ValueError: a column is missing (also `correct`, where the labels are kept back), or a row has no
            name, id or voice, a name for the second time, a `correct` that is not 0 or 1, or a frequency or
            length that is no whole number. The message has the line.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in lines.fieldnames or ()]
        lines.fieldnames = header
        task = _task_of(header, path)
        rows, seen = [], set()
        for line in lines:
            row = _gold_row(line, task, f"{path}, line {lines.line_num}")
            if row.filename in seen:
                raise ValueError(f"{path}, line {lines.line_num}: {row.filename} is named a second time")
            seen.add(row.filename)
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    return Gold(task, rows)


def zerospeech_folder(source: str | os.PathLike, task: str, subset: str) -> Path:
    """The folder with the recordings of one task and subset, in a copy that may be given from any level."""
    if task not in ZEROSPEECH_TASKS:
        raise ValueError(f"unknown task {task!r}; use one of {', '.join(ZEROSPEECH_TASKS)}")
    if subset not in ZEROSPEECH_SUBSETS:
        raise ValueError(f"unknown subset {subset!r}; use one of {', '.join(ZEROSPEECH_SUBSETS)}")
    place = Path(source)
    *_, above, name = ("", *place.absolute().parts)
    candidates = [place / task / subset]
    candidates += [place / subset] if name == task else []
    candidates += [place] if (above, name) == (task, subset) else []
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{place} has no folder {task}/{subset}; expected {LAYOUTS['zerospeech']}, or one of these folders"
    )


def zerospeech_names(source: str | os.PathLike, task: str, subset: str) -> list[str]:
    """The names that a submission must score: the WAV files of the subset, without suffix, sorted."""
    folder = zerospeech_folder(source, task, subset)
    names = [name[: -len(".wav")] for name in _audio_names(folder) if name.endswith(".wav")]
    if not names:
        raise ValueError(f"{folder} has no WAV file; expected {LAYOUTS['zerospeech']}")
    return names


# Names of files: ids that are no names are quoted by rows/writers.py.


def file_name_of(item_id: str) -> str:
    """An id -> the same, or percent-encoded where a file name cannot hold it: "dev/12" -> "dev%2F12"."""
    return quote(item_id, safe=" ")


def id_of(file_name: str) -> str:
    """The inverse of `file_name_of`; names of other origin that only look encoded are left as they are."""
    decoded = unquote(file_name)
    return decoded if file_name_of(decoded) == file_name else file_name


def _stories(
    folders: list[tuple[str | None, Path]], drops: Drops, task: str, language: str, speaker: str
) -> Iterator[Draft]:
    for group, folder in folders:
        files, others = [], set(os.listdir(folder))
        for name in _audio_names(folder):
            found = _STORY_FILE.fullmatch(name)
            if found:
                files.append((int(found["index"]), found["label"], found["story"], name))
            else:
                drops.add(_inside(group, name), "bad_name", f"expected {LAYOUTS['spoken-storycloze']}")
        files.sort()
        seen, position = set(), 0
        while position < len(files):
            (_, label, story, name), *following = files[position : position + 2]
            partner = following[0] if following else (0, "", "", "nothing")
            if (label, partner[1], partner[2]) != ("correct", "incorrect", story):
                drops.add(
                    _inside(group, name), "incomplete", f"{partner[3]} follows; expected its counterpart"
                )
                position += 1
                continue
            position += 2
            draft_id = _inside(group, id_of(story))
            if draft_id in seen:
                drops.add(draft_id, "duplicate_id", f"{name} and {partner[3]} have the id of an earlier pair")
                continue
            seen.add(draft_id)
            sides = {
                "correct": _wav_side(folder, name, language, others),
                "negative": _wav_side(folder, partner[3], language, others),
            }
            columns = {"task": task, "pair_id": id_of(story)}
            yield Draft(draft_id, "pair", sides, speaker=group or speaker, columns=columns)


def _cloze_items(
    folders: list[tuple[str | None, Path]], drops: Drops, task: str, language: str, speaker: str
) -> Iterator[Draft]:
    for group, folder in folders:
        items: dict[str, dict[str, str]] = {}
        others = set(os.listdir(folder))
        for name in _audio_names(folder):
            found = _CLOZE_FILE.fullmatch(name)
            if found:
                items.setdefault(found["base"], {})[found["label"]] = name
            else:
                drops.add(_inside(group, name), "bad_name", f"expected {LAYOUTS['slamkit-cloze']}")
        seen = set()
        for base, files in items.items():
            draft_id = _inside(group, id_of(base))
            absent = [f"{base}_{label}.wav" for label in _CLOZE_SIDES if label not in files]
            if absent:
                drops.add(draft_id, "incomplete", f"there is no {' and no '.join(absent)}")
                continue
            if draft_id in seen:
                drops.add(draft_id, "duplicate_id", f"{base} is the id of an earlier item, encoded")
                continue
            seen.add(draft_id)
            sides = {
                f"{side}_{language}": _wav_side(folder, files[label], language, others)
                for label, side in _CLOZE_SIDES.items()
            }
            columns = {"task": task} | ({"pair_id": id_of(base)} if group else {})
            yield Draft(draft_id, "cloze", sides, speaker=group or speaker, columns=columns)


def _multispeaker_pairs(
    shards: Iterable[tuple[Path, str, str]], drops: Drops, language: str
) -> Iterator[Draft]:
    seen: set[str] = set()
    for file, folder, speaker in shards:
        for row, values, absent in _parquet_rows(
            file, ("id", "correct_text", "negative_text"), ("correct_audio", "negative_audio")
        ):
            draft_id = f"{folder}/{speaker}/{values['id']}"
            if absent:
                drops.add(draft_id, "missing", f"row {row} of {file.name} has no {' and no '.join(absent)}")
            elif draft_id in seen:
                drops.add(draft_id, "duplicate_id", f"row {row} of {file.name} has the id of an earlier row")
            else:
                seen.add(draft_id)
                sides = {
                    side: _parquet_side(file, f"{side}_audio", row, values[f"{side}_text"], language)
                    for side in ("correct", "negative")
                }
                columns = {"task": STORYCLOZE_FOLDERS[folder], "pair_id": f"{folder}/{values['id']}"}
                yield Draft(draft_id, "pair", sides, speaker=speaker, columns=columns)


def _swag_items(shards: Iterable[tuple[Path, str]], drops: Drops, language: str) -> Iterator[Draft]:
    names = {"prompt": "prompt", "correct": "chosen", "negative": "rejected"}
    rows_of_split: dict[str, int] = {}
    texts = ("speaker", *(f"{column}_text" for column in names.values()))
    for file, split in shards:
        for row, values, absent in _parquet_rows(file, texts, tuple(names.values())):
            place = rows_of_split.get(split, 0)
            rows_of_split[split] = place + 1
            draft_id = f"{split}/{place:05d}"
            if absent:
                drops.add(draft_id, "missing", f"row {row} of {file.name} has no {' and no '.join(absent)}")
                continue
            sides = {
                f"{side}_{language}": _parquet_side(file, column, row, values[f"{column}_text"], language)
                for side, column in names.items()
            }
            speaker = values["speaker"] or UNKNOWN_SPEAKER
            yield Draft(draft_id, "cloze", sides, speaker=speaker, columns={"task": "swag"})


def _zerospeech_pairs(gold: Gold, folder: Path, drops: Drops, subset: str, language: str) -> Iterator[Draft]:
    task = ZEROSPEECH_TASKS[gold.task][0]
    there = set(_audio_names(folder))
    for pair in gold.pairs(drops, subset):
        pair_id = "/".join((subset, *pair.key))
        files = {"correct": pair.correct, "negative": pair.negative}
        absent = [f"{row.filename}.wav" for row in files.values() if f"{row.filename}.wav" not in there]
        if absent:
            drops.add(f"{pair_id}/{pair.voice}", "missing", f"there is no {' and no '.join(absent)}")
            continue
        sides = {
            side: Side(language, [row.text], [str(folder / f"{row.filename}.wav")])
            for side, row in files.items()
        }
        columns = {
            "task": task,
            "pair_id": pair_id,
            "subset": subset,
            "frequency": None if pair.correct.frequency is None else str(pair.correct.frequency),
            "length": pair.correct.length,
            "type": pair.correct.type or None,
            "subtype": pair.correct.subtype or None,
            "correct_phones": pair.correct.phones or None,
            "negative_phones": pair.negative.phones or None,
            "correct_file": pair.correct.filename,
            "negative_file": pair.negative.filename,
        }
        columns = {name: value for name, value in columns.items() if value is not None}
        yield Draft(f"{pair_id}/{pair.voice}", "pair", sides, speaker=pair.voice, columns=columns)
    for name in sorted(there - {f"{row.filename}.wav" for row in gold.rows}):
        drops.add(name, "unlisted", f"{folder / 'gold.csv'} does not name it")


def _task_of(header: Sequence[str], path: str | os.PathLike) -> str:
    for task, (_, columns) in ZEROSPEECH_TASKS.items():
        absent = [name for name in columns if name not in header]
        if not absent:
            return task
        if absent == ["correct"]:
            raise ValueError(
                f"{path} has no column 'correct': the labels of the {task} set are kept back, so nothing can "
                "be said about right and wrong here. Score all of its files and hand them in "
                "(writers.write_zerospeech_submission), or take the sLM21-dataset of the zrc toolkit"
            )
    expected = " or ".join(", ".join(columns) for _, columns in ZEROSPEECH_TASKS.values())
    raise ValueError(f"{path} is no gold.csv of ZeroSpeech 2021: it has {list(header)}, expected {expected}")


def _gold_row(line: dict[str | None, Any], task: str, where: str) -> GoldRow:
    columns = ZEROSPEECH_TASKS[task][1]
    if None in line or any(line[name] is None for name in columns):
        raise ValueError(f"{where}: a row has as many fields as the header, got {list(line.values())}")
    values = {name: line[name].strip() for name in columns}
    needed = ("filename", "id", "voice") + (("type", "subtype") if task == "syntactic" else ())
    for name in needed:
        if not values[name]:
            raise ValueError(f"{where}: {name} is empty")
    correct = _whole_number(values["correct"], f"{where}: correct")
    if correct not in (0, 1):
        raise ValueError(f"{where}: correct is 1 for the right file and 0 for the wrong one, got {correct}")
    file = {
        "filename": values["filename"].removesuffix(".wav"),
        "id": values["id"],
        "voice": values["voice"],
        "correct": bool(correct),
    }
    if task == "syntactic":
        return GoldRow(**file, text=values["transcription"], type=values["type"], subtype=values["subtype"])
    return GoldRow(
        **file,
        text=values["word"],
        phones=values["phones"],
        frequency=_whole_number(values["frequency"], f"{where}: frequency"),
        length=_whole_number(values["length"], f"{where}: length"),
    )


def _whole_number(value: str, where: str) -> int | None:
    """ "" -> None. "3.0" is 3: pandas writes whole numbers like that in a column with gaps."""
    if not value:
        return None
    try:
        number = float(value)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{where} must be a whole number, got {value!r}")


# Folders of WAV files.


def _audio_names(folder: Path) -> list[str]:
    """Names of the audio files in a folder, sorted; hidden files are none of ours."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in FORMAT_OF_SUFFIX)


def _has_wav(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".wav") and not entry.name.startswith(".") for entry in entries)


def _folders_with_wav(source: str | os.PathLike, layout: str) -> list[tuple[str | None, Path]]:
    """(None, folder) if it has WAV files itself, else (name, sub-folder) for those that have."""
    place = Path(source)
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: there is no such folder; expected {LAYOUTS[layout]}")
    if _has_wav(place):
        return [(None, place)]
    found = [(each.name, each) for each in sorted(place.iterdir()) if each.is_dir() and _has_wav(each)]
    if not found:
        raise ValueError(f"{place} has no WAV file; expected {LAYOUTS[layout]}")
    return found


def _wav_side(folder: Path, name: str, language: str, others: set[str]) -> Side:
    """One recording with the text beside it, if there is any."""
    transcript = f"{name[: -len('.wav')]}.txt"
    text = (folder / transcript).read_text(encoding="utf-8").strip() if transcript in others else ""
    return Side(language, [text], [str(folder / name)])


def _inside(group: str | None, name: str) -> str:
    return f"{group}/{name}" if group else name


def _layout_of_folder(folder: Path) -> str | None:
    subsets = [Path(task, subset) for task in ZEROSPEECH_TASKS for subset in ZEROSPEECH_SUBSETS]
    golds = [Path("gold.csv"), *(Path(subset, "gold.csv") for subset in ZEROSPEECH_SUBSETS)]
    if any((folder / gold).is_file() for gold in golds) or any((folder / each).is_dir() for each in subsets):
        return "zerospeech"
    if not _has_wav(folder):
        file = next((each for each in sorted(folder.rglob("*.parquet")) if _is_visible(each, folder)), None)
        if file is not None:
            return _layout_of_parquet(file)
    try:
        names = [
            name for _, each in _folders_with_wav(folder, "slamkit-cloze") for name in _audio_names(each)
        ]
    except ValueError:
        return None
    labels = {found["label"] for found in map(_CLOZE_FILE.fullmatch, names) if found}
    if labels == set(_CLOZE_SIDES):
        return "slamkit-cloze"
    return "spoken-storycloze" if any(map(_STORY_FILE.fullmatch, names)) else None


# Parquet files with audio.


def _local_copy(source: str | os.PathLike, patterns: Sequence[str]) -> Path:
    """A file or folder as it is; a Hub id -> the folder of its files that match."""
    place = Path(source)
    if place.exists():
        return place
    from ..processing_clsi import HUB_ID  # imports transformers

    if "/" not in str(source) or not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{place}: there is no such file or folder, and it is no Hub id either")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), repo_type="dataset", allow_patterns=list(patterns)))


def _is_visible(file: Path, root: Path) -> bool:
    """Whether neither the file nor a folder on the way is hidden (.cache of a download, .build of ours)."""
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _parquet_files(root: Path, layout: str) -> list[Path]:
    if root.is_file():
        return [root]
    files = sorted(file for file in root.rglob("*.parquet") if _is_visible(file, root))
    if not files:
        raise ValueError(f"{root} has no Parquet file; expected {LAYOUTS[layout]}")
    return files


def _storycloze_place(file: Path) -> tuple[str, str]:
    """sSC/bm/train-00000-of-00001.parquet -> ("sSC", "bm")."""
    parts = file.absolute().parts
    for at in range(len(parts) - 3, -1, -1):  # the speaker and the file come behind it
        if parts[at] in STORYCLOZE_FOLDERS:
            return parts[at], parts[at + 1]
    raise ValueError(f"{file} lies in no folder of a speaker; expected {LAYOUTS['multispeaker-storycloze']}")


def _layout_of_parquet(file: Path) -> str | None:
    import pyarrow.parquet as pq

    names = set(pq.read_schema(file).names)
    columns = {"multispeaker-storycloze": STORYCLOZE_COLUMNS, "spoken-swag": SWAG_COLUMNS}
    return next((layout for layout, needed in columns.items() if names >= set(needed)), None)


def _check_parquet(file: Path, columns: Sequence[str], audio_columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    absent = [name for name in columns if name not in schema.names]
    if absent:
        raise ValueError(f"{file} has no column {', '.join(absent)}; it has {', '.join(schema.names)}")
    for name in audio_columns:
        kind = schema.field(name).type
        inner = kind.field("bytes").type if pa.types.is_struct(kind) and "bytes" in kind.names else kind
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise ValueError(
                f"{file}: column {name} must hold encoded audio, bytes or {{bytes, path}}, got {kind}; cast "
                "it with datasets' Audio(decode=False) and write the file anew"
            )


def _parquet_rows(
    file: Path, columns: Sequence[str], audio_columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any], list[str]]]:
    """Rows without their audio: (place in the file, values, audio columns that are empty)."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, **STREAMING) as parquet:
        row = 0
        for group in range(parquet.num_row_groups):
            empty = {name: _rows_without_audio(parquet, group, name) for name in audio_columns}
            start = row
            for batch in parquet.iter_batches(
                _TEXT_BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            ):
                for values in batch.to_pylist():
                    yield row, values, [name for name in audio_columns if row - start in empty[name]]
                    row += 1


def _rows_without_audio(parquet: Any, group: int, column: str) -> set[int]:
    """Places in a row group whose cell has neither bytes nor path; where the footer counts none, unread."""
    content = parquet.metadata.row_group(group)
    for at in range(content.num_columns):
        chunk = content.column(at)
        if chunk.path_in_schema in (column, f"{column}.bytes"):
            known = chunk.is_stats_set and chunk.statistics.has_null_count
            if known and chunk.statistics.null_count == 0:
                return set()
    empty, row = set(), 0
    for batch in parquet.iter_batches(
        _AUDIO_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
    ):
        for cell in batch.column(0).to_pylist():
            if isinstance(cell, dict):
                cell = cell.get("path") or None if cell.get("bytes") is None else cell["bytes"]
            if cell is None:
                empty.add(row)
            row += 1
    return empty


def _parquet_side(file: Path, column: str, row: int, text: str | None, language: str) -> Side:
    return Side(language, [(text or "").strip()], [{"path": str(file), "column": column, "row": row}])


class _Cursor:
    """One column of a Parquet file, read forward."""

    def __init__(self, path: str, column: str):
        import pyarrow.parquet as pq

        self.path, self.column = path, column
        self.parquet = pq.ParquetFile(path, **STREAMING)
        if column not in self.parquet.schema_arrow.names:
            raise ValueError(f"{path} has no column {column}; it has {self.parquet.schema_arrow.names}")
        self.ends = [0]  # of the row groups, after a leading 0
        for group in range(self.parquet.num_row_groups):
            self.ends.append(self.ends[-1] + self.parquet.metadata.row_group(group).num_rows)
        self.group = -1
        self.batches: Iterator[Any] = iter(())
        self.batch: Any = None
        self.start = self.stop = 0  # rows of the batch

    def cell(self, row: int) -> Any:
        if not 0 <= row < self.ends[-1]:
            raise ValueError(f"{self.path} has {self.ends[-1]} rows, there is no row {row}")
        if row < self.start or self.group < 0 or row >= self.ends[self.group + 1]:
            self.group = next(g for g in range(self.parquet.num_row_groups) if row < self.ends[g + 1])
            self.start = self.stop = self.ends[self.group]
            self.batches = self.parquet.iter_batches(
                _AUDIO_BATCH_ROWS, row_groups=[self.group], columns=[self.column], use_threads=False
            )
        while row >= self.stop:
            self.batch = next(self.batches)
            self.start, self.stop = self.stop, self.stop + len(self.batch)
        return self.batch.column(0)[row - self.start].as_py()

    def close(self) -> None:
        self.parquet.close()


_opened = threading.local()


def _cursor(path: str | os.PathLike, column: str) -> _Cursor:
    """The open cursor of a column; another file, or a new version of it, closes those of the last."""
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise AudioError(path, "missing", "there is no such file; check the path") from error
    version = (path, status.st_ino, status.st_mtime_ns, status.st_size)
    if getattr(_opened, "version", None) != version:
        for cursor in getattr(_opened, "cursors", {}).values():
            cursor.close()
        _opened.version, _opened.cursors = version, {}
    if column not in _opened.cursors:
        _opened.cursors[column] = _Cursor(path, column)
    return _opened.cursors[column]


def _file_bytes(path: str | os.PathLike, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(os.fspath(path), "missing", f"{name} is not there; check the path") from error
