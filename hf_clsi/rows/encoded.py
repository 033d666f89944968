"""Keeps what lies beside the shards of encoded recordings: encoding.json, refused.jsonl and the card.

encoding.json      {"test": `EncodedSplit`, ...} or {"en-fr/test": ...}; says which shards are finished
refused.jsonl      {"split", "id", "reason", "message", "path", "index"}: what could not be used
SOURCE_README.md   the README of the recordings, which says whose they are
README.md          the card, made from all finished splits
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .cards import DatasetCard, Licence, Step, check_publishable, write_card
from .recordings import Recordings, Refusal
from .shards import PARTIAL, shard_path

UNKNOWN_SPEAKER = "unknown"

#: (name of the folder, its finished splits) -> the card.
CardMaker = Callable[[str, Mapping[str, "EncodedSplit"]], DatasetCard]


@dataclass
class EncodedSplit:
    """One split of an encoded dataset, as encoding.json keeps it.

    settings: what must be the same for an interrupted encoding to go on. clips, seconds and units are of the
    rows that were written, by language. refused: files and lines by reason; rows_refused: rows lost by them.
    licence: the line of the recordings' README about it; licence_tag: as the Hub calls it. fit: how the audio
    tokenizer was fitted, if it was on recordings. speakers: language -> person, where the caller named them.
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
    config: str | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    licence_tag: str | None = None

    @property
    def key(self) -> str:
        """How encoding.json and refused.jsonl call it: `test`, or with its config `en-fr/test`."""
        return split_key(self.split, self.config)


def split_key(split: str, config: str | None) -> str:
    """`EncodedSplit.key`."""
    return f"{config}/{split}" if config else split


def read_splits(folder: Path) -> dict[str, EncodedSplit]:
    """The splits of encoding.json, finished or not."""
    file = folder / "encoding.json"
    if not file.is_file():
        return {}
    splits = json.loads(file.read_text(encoding="utf-8"))
    return {name: EncodedSplit(**values) for name, values in splits.items()}


def write_splits(folder: Path, splits: Mapping[str, EncodedSplit]) -> None:
    content = {name: asdict(record) for name, record in splits.items()}
    replace_file(folder / "encoding.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_file(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_name(f".{file.name}{PARTIAL}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def shards_of(folder: Path, split: str, config: str | None) -> list[Path]:
    """Those that are there, of any writing of the split."""
    place = shard_path(folder, split, 0, 1, config)
    name = re.compile(rf"{re.escape(split)}-\d{{5,}}-of-\d{{5,}}\.parquet")
    return [path for path in place.parent.glob("*.parquet") if name.fullmatch(path.name)]


def remove_leftovers(folder: Path, split: str, config: str | None) -> None:
    """Remove the halves of files that a killed encoding left."""
    place = shard_path(folder, split, 0, 1, config).parent
    for path in [*place.glob(f".{split}-*{PARTIAL}"), *folder.glob(f".*.json*{PARTIAL}")]:
        path.unlink(missing_ok=True)


def check_free(
    folder: Path, splits: Mapping[str, EncodedSplit], split: str, config: str | None, overwrite: bool
) -> None:
    """Refuse a folder that holds something else, or the split. FileExistsError says which."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the dataset")
    if (folder / "README.md").exists() and not (folder / "encoding.json").exists():
        raise FileExistsError(f"{folder} holds a README.md of something else; name a new folder")
    key = split_key(split, config)
    there = splits[key].finished if key in splits else bool(shards_of(folder, split, config))
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} holds the split {key!r} already; overwrite it (--overwrite), or name another split "
            "or folder"
        )


def remove_split(folder: Path, split: str, config: str | None) -> None:
    """Its shards, and what encoding.json and refused.jsonl say of it."""
    for path in shards_of(folder, split, config):
        path.unlink()
    splits, key = read_splits(folder), split_key(split, config)
    if splits.pop(key, None) is not None:
        write_splits(folder, splits)
    write_refused(folder, key, [])


def read_refused(folder: Path, key: str) -> list[Refusal]:
    return [Refusal(**line) for where, line in refused_lines(folder) if where == key]


def refused_lines(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines of refused.jsonl as (key of the split, the rest)."""
    file = folder / "refused.jsonl"
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(line.pop("split"), line) for line in lines]


def write_refused(folder: Path, key: str, refused: Sequence[Refusal], source: str | os.PathLike = "") -> None:
    """Replace the split's lines of refused.jsonl; without any line there is no file.

    Paths are written as they are inside the source: what lies above it is this machine's business.
    """
    place = Path(source)
    above = f"{place if place.is_dir() else place.parent}{os.sep}" if source else ""

    def inside(text: str | None) -> str | None:
        return text.replace(above, "") if text and os.path.isabs(above) else text

    lines = [{"split": name, **line} for name, line in refused_lines(folder) if name != key]
    for refusal in refused:
        refusal = replace(refusal, path=inside(refusal.path), message=inside(refusal.message))
        lines.append({"split": key, **asdict(refusal)})
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        replace_file(folder / "refused.jsonl", text)
    else:
        (folder / "refused.jsonl").unlink(missing_ok=True)


def count_refused(record: EncodedSplit, refused: Sequence[Refusal]) -> None:
    """Set `refused` and `rows_refused`."""
    record.refused = dict(sorted(Counter(refusal.reason for refusal in refused).items()))
    with_place = {refusal.index for refusal in refused if refusal.index is not None}
    record.rows_refused = len(with_place) + sum(refusal.index is None for refusal in refused)


def keep_readme(found: Recordings, folder: Path, record: EncodedSplit) -> None:
    """Copy the input's README.md, which says whose the recordings are, and note its licence."""
    if found.readme is None:
        return
    content = found.readme.read_bytes()
    copy = folder / "SOURCE_README.md"
    if copy.exists() and copy.read_bytes() != content:
        copy = folder / f"SOURCE_README_{record.key.replace('/', '_')}.md"
    copy.write_bytes(content)
    record.source_readme = copy.name
    record.licence = licence_line(content)
    record.licence_tag = record.licence_tag or licence_tag(record.licence)


def licence_line(readme: bytes) -> str | None:
    """The first line of a README that begins with the word licence (or license)."""
    text = readme.decode("utf-8", "replace")
    line = re.search(r"^\W*licen[cs]e\b.*$", text, re.MULTILINE | re.IGNORECASE)
    return line[0].strip() if line else None


def licence_tag(line: str | None) -> str | None:
    """The Hub's tag of the Creative Commons licence that a line names, if it names one.

    >>> licence_tag("Licence: CC BY-SA 3.0. Read by A and B.")
    'cc-by-sa-3.0'
    """
    match = re.search(r"\bCC[ -](BY(?:-(?:NC|SA|ND))*)[ -](\d\.\d)", line or "", re.IGNORECASE)
    return f"cc-{match[1]}-{match[2]}".lower() if match else None


def check_alike(
    folder: Path,
    others: Sequence[EncodedSplit],
    label: str,
    columns: Mapping[str, str],
    config: str | None,
) -> None:
    """Splits of one dataset have the same tokenizer, and those of one config the same columns."""
    for other in others:
        if other.audio_tokenizer != label:
            raise ValueError(
                f"split {other.key!r} of {folder} was encoded by {other.audio_tokenizer}, this one would "
                f"be by {label}: their units mean different things. Make another dataset, or use the same "
                "tokenizer"
            )
        if other.config == config and other.columns != columns:
            names = ", ".join(sorted(set(other.columns) ^ set(columns)))
            raise ValueError(
                f"split {other.key!r} of {folder} has other columns ({names} in one of the two only); "
                "splits of one dataset have the same. Make another dataset"
            )


# ---- The card


def write_encoded_card(folder: Path, splits: Mapping[str, EncodedSplit], make_card: CardMaker | None) -> None:
    """README.md of the finished ones among the splits."""
    finished = {name: record for name, record in splits.items() if record.finished}
    write_card(folder, (make_card or _card_of_any)(folder.resolve().name, finished))


def _card_of_any(name: str, splits: Mapping[str, EncodedSplit]) -> DatasetCard:
    """The card of recordings of which nothing is known but what was found and measured."""
    first = next(iter(splits.values()))
    what = "sentence pairs" if len(first.languages) == 2 else "sentences"
    kept = "sound and " if any(record.settings["keep_audio"] for record in splits.values()) else ""
    return DatasetCard(
        name=name,
        summary=f"Recorded {what} ({', '.join(first.languages)}) as {kept}discrete speech units, made by "
        "`hf-clsi encode`.",
        dropped_file="refused.jsonl",
        **measured_facts(splits),
    )


def measured_facts(splits: Mapping[str, EncodedSplit]) -> dict[str, Any]:
    """What the splits themselves say, as fields of a `DatasetCard`."""
    records = list(splits.values())
    first = records[0]
    sizes: dict[str | None, dict[str, dict[str, Any]]] = {}
    refused: Counter[str] = Counter()
    for record in records:
        sizes.setdefault(record.config, {})[record.split] = {
            "rows": record.rows,
            "shards": record.num_shards,
            "seconds": record.seconds,
            "units": record.units,
        }
        refused.update(record.refused)
    tags = {record.licence_tag for record in records}
    making = (
        "Every recording was mixed to one channel, resampled to the audio tokenizer's rate and padded with "
        "zeros to whole frames."
    )
    return {
        "kind": "parallel",
        "languages": list(dict.fromkeys(language for record in records for language in record.languages)),
        "columns": {record.config: record.columns for record in records},
        "splits": sizes,
        "num_units": first.num_units,
        "frame_rate_hz": first.frame_rate_hz,
        "audio_tokenizer": first.audio_tokenizer,
        "tokenizer_origin": first.tokenizer_origin,
        "steps": [Step(making)],
        "voices": voices_of(splits),
        "licence": tags.pop() if len(tags) == 1 else None,
        "licences": list(dict.fromkeys(_licence_of(record) for record in records)),
        "dropped": dict(sorted(refused.items())),
        "meanings": {
            "voice_{L}": "who speaks that language",
            "source_{L}": "file of the recording in the source, or what its metadata say",
            "seconds_{L}": "length of the recording, in seconds",
        },
        "default_config": first.config,
    }


def voices_of(splits: Mapping[str, EncodedSplit]) -> list[dict[str, Any]]:
    """Speakers that were named, as build.json and `DatasetCard.voices` have them."""
    found: dict[str, dict[str, Any]] = {}
    for record in splits.values():
        for language, speaker in record.speakers.items():
            own = found.setdefault(speaker, {"speaker": speaker, "rows": 0, "voices": {}, "licences": {}})
            own["voices"][language] = speaker
            if record.licence_tag is not None:
                own["licences"][language] = record.licence_tag
        for speaker in dict.fromkeys(record.speakers.values()):
            found[speaker]["rows"] += record.rows
    return list(found.values())


def _licence_of(record: EncodedSplit) -> Licence:
    """What is known of whose the recordings are, in the words of their README."""
    with_text = any(name.startswith("text_") for name in record.columns)
    covers = "recordings and transcripts" if with_text else "recordings"
    if record.source_readme is None:
        unknown = "the source has no README.md: find out whose the recordings are before passing them on"
        return Licence(covers, record.licence_tag or "unknown", f"{record.source}; {unknown}")
    readme = f"[{record.source_readme}]({record.source_readme})"
    said = record.licence or ""
    try:
        check_publishable(said, "licence")
    except ValueError:
        said = f"see {readme}"
    source = (
        f"{record.source}, with its README, {readme}, whose licence and attribution hold for this dataset"
    )
    return Licence(covers, record.licence_tag or "as their README says", source, said)
