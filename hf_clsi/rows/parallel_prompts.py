"""Recordings of two languages, paired sentence by sentence, become the dataset `parallel-prompts`.

    <L1>-<L2>/test-*.parquet             sound, text and units of every pair
    README.md, build.json                the card; settings, sizes and `"finished": true`, written last
    dropped.jsonl                        what was left out, if anything was
    audio_tokenizer/                     if it was fitted here
    encoding.json, SOURCE_README.md ...  what encoded.py keeps

The work is that of encoding.py; here are the card and the record of the build.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..units.encode import load_audio_tokenizer
from ..units.tokenizers import resolve_audio_tokenizer, tokenizer_label
from .build_folder import clear_disk_errors, lock
from .cards import PAPER_CITATION, DatasetCard, check_publishable
from .encoded import (
    EncodedSplit,
    licence_line,
    licence_tag,
    measured_facts,
    read_splits,
    refused_lines,
    replace_file,
    split_key,
    voices_of,
    write_encoded_card,
)
from .encoding import encode_recordings, fit_settings, rows_per_shard, settings_of
from .plan import BuildRecord, write_json
from .recordings import Recordings, find_recordings
from .shards import read_columns

logger = logging.getLogger(__name__)

SPLIT = "test"


def build_parallel_prompts(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    languages: Sequence[str] | None = None,
    audio_tokenizer: str | os.PathLike | None = None,
    num_units: int = 64,
    frame_rate_hz: float = 12.5,
    duration_penalty: float = 0.0,
    seed: int = 0,
    speakers: Mapping[str, str] | None = None,
    licence: str | None = None,
    keep_audio: bool = True,
    name: str = "clsi/parallel-prompts",
    summary: str | None = None,
    limits: Sequence[str] = (),
    command: str | None = None,
    batch_seconds: float = 60.0,
    max_rows_per_shard: int | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> BuildRecord:
    """Build the dataset `parallel-prompts`: config `en-fr` (the two languages), split test.

    The pair of two other languages can be built into the same folder, where it shares the audio tokenizer. A
    build that was interrupted goes on behind its last shard; of a finished one, only the card and build.json
    are written again.

    Args:
        source: as in `find_recordings`. languages: two of those in it; None: it holds two.
        output_dir, audio_tokenizer, num_units, frame_rate_hz, duration_penalty, seed, speakers, keep_audio,
        batch_seconds, max_rows_per_shard, on_error, overwrite, device: as in `encode_recordings`.
        licence: of the recordings, as the Hub calls it; None: the Creative Commons licence that the README of
            the source names, if it names one.
        name, summary, limits, command: for the card (see `DatasetCard`). command None: that of
            `hf-clsi build`.

    Raises: as `encode_recordings`; ValueError also for a source with other than two languages, or a path of
        this machine in what the card says; RuntimeError while another build is at work in the folder.
    """
    folder = Path(output_dir)
    # Before the work, and not after it:
    check_publishable(
        {"name": name, "summary": summary, "limits": limits, "command": command, "speakers": speakers},
        "the card of parallel-prompts",
    )
    found = find_recordings(source, languages)
    if len(found.languages) != 2:
        raise ValueError(
            f"a config is a pair of languages, but {source} holds {', '.join(found.languages)}; name two of "
            "them (--languages)"
        )
    config = "-".join(found.languages)
    if licence is None and found.readme is not None:
        licence = licence_tag(licence_line(found.readme.read_bytes()))
    max_rows_per_shard = rows_per_shard(max_rows_per_shard, keep_audio)
    fit = fit_settings(num_units, frame_rate_hz, duration_penalty, seed)
    if command is None:
        command = _command(found, audio_tokenizer, fit, speakers, keep_audio)

    def make_card(_: str, splits: Mapping[str, EncodedSplit]) -> DatasetCard:
        told = [*limits, *_repetitions(folder, splits)]
        return prompts_card(splits, name=name, summary=summary, limits=told, command=command)

    with clear_disk_errors(folder), lock(folder):
        record = read_splits(folder).get(split_key(SPLIT, config))
        if record is not None and record.finished and not overwrite:
            label = record.audio_tokenizer if record.fit == fit else None
            if audio_tokenizer is not None:
                path = resolve_audio_tokenizer(audio_tokenizer)
                label = tokenizer_label(load_audio_tokenizer(path), path)
            asked = settings_of(found.attributed(speakers, licence), label, max_rows_per_shard, keep_audio)
            if changed := [key for key, value in asked.items() if record.settings[key] != value]:
                raise FileExistsError(
                    f"{folder} holds the config {config!r} already, made with other {', '.join(changed)}; "
                    "name another folder, or overwrite it (--overwrite)"
                )
            logger.info("%s is there already; only its card is written again", folder / config)
            write_encoded_card(folder, read_splits(folder), make_card)
        else:
            encode_recordings(
                source,
                folder,
                split=SPLIT,
                config=config,
                languages=found.languages,
                audio_tokenizer=audio_tokenizer,
                num_units=num_units,
                frame_rate_hz=frame_rate_hz,
                duration_penalty=duration_penalty,
                seed=seed,
                keep_audio=keep_audio,
                speakers=speakers,
                licence=licence,
                batch_seconds=batch_seconds,
                max_rows_per_shard=max_rows_per_shard,
                on_error=on_error,
                overwrite=overwrite,
                device=device,
                progress=progress,
                make_card=make_card,
            )
        return _finish(folder, name.rsplit("/", 1)[-1])


def prompts_card(
    splits: Mapping[str, EncodedSplit],
    *,
    name: str = "clsi/parallel-prompts",
    summary: str | None = None,
    limits: Sequence[str] = (),
    command: str | None = None,
) -> DatasetCard:
    """The card of finished splits; what follows from how they were made is added to the limits."""
    facts = measured_facts(splits)
    records, limits = list(splits.values()), list(limits)
    if any(len(set(record.speakers.values())) > 1 for record in records):
        limits.append(
            "Each language has a speaker of its own: what differs between the languages differs between "
            "persons as well."
        )
    if records[0].fit:
        limits.append(
            "The audio tokenizer was fitted on these very recordings: how well its units do here says "
            "nothing about other speech."
        )
    facts["meanings"] |= {
        "speaker": "who speaks: the persons of all languages, in the order of the languages"
    }
    if summary is None:
        with_sound = "sound, " if any(record.settings["keep_audio"] for record in records) else ""
        summary = (
            f"Recorded sentence pairs ({', '.join(facts['languages'])}) as {with_sound}text and discrete "
            "speech units."
        )
    return DatasetCard(
        name=name, summary=summary, limits=limits, command=command, citation=PAPER_CITATION, **facts
    )


def _repetitions(folder: Path, splits: Mapping[str, EncodedSplit]) -> list[str]:
    """What a card says of pairs that have the texts of an earlier pair, config by config."""
    told = []
    for record in splits.values():
        names = [
            name for name in (f"text_{language}" for language in record.languages) if name in record.columns
        ]
        if len(names) < len(record.languages):
            continue
        columns = read_columns(folder, record.split, names, record.config)
        pairs = list(zip(*([_words(texts[0]) for texts in columns[name]] for name in names), strict=True))
        repeated = len(pairs) - len(set(pairs))
        if repeated:
            told.append(
                f"{repeated:,} of the {len(pairs):,} pairs of `{record.config}` have, in both languages, the "
                "texts of an earlier pair, but for case and punctuation: other takes, or the same words in "
                "another place."
            )
    return told


def _words(text: str) -> str:
    """A text without what case, spaces and punctuation make different, as rows/validate.py compares it."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))


def _command(
    found: Recordings,
    audio_tokenizer: str | os.PathLike | None,
    fit: Mapping[str, float],
    speakers: Mapping[str, str] | None,
    keep_audio: bool,
) -> str:
    """The command line that asks for this, in names that mean something on other machines."""
    words = ["hf-clsi", "build", "parallel-prompts", "--source", found.source]
    words += ["--languages", ",".join(found.languages)]
    if speakers:
        words += ["--speakers", ",".join(f"{language}={speaker}" for language, speaker in speakers.items())]
    if audio_tokenizer is not None:
        name = str(audio_tokenizer)
        words += ["--audio-tokenizer", Path(name).name if Path(name).is_dir() else name]
    else:
        flags = {"num_units": "--num-units", "frame_rate_hz": "--frame-rate"}
        flags |= {"duration_penalty": "--duration-penalty", "seed": "--seed"}
        for key, flag in flags.items():
            words += [flag, f"{fit[key]:g}"]
    if not keep_audio:
        words.append("--no-audio")
    return shlex.join(words)


def _finish(folder: Path, dataset: str) -> BuildRecord:
    """Write dropped.jsonl and, last, build.json."""
    splits = {key: record for key, record in read_splits(folder).items() if record.finished}
    records = list(splits.values())
    dropped = [
        {"split": key, "id": line["id"], "reason": line["reason"], "message": line["message"]}
        for key, line in refused_lines(folder)
        if key in splits
    ]
    if dropped:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in dropped]
        replace_file(folder / "dropped.jsonl", "".join(lines))
    else:
        (folder / "dropped.jsonl").unlink(missing_ok=True)
    languages = list(dict.fromkeys(language for record in records for language in record.languages))

    def total(name: str) -> dict[str, float]:
        return {code: sum(getattr(record, name).get(code, 0) for record in records) for code in languages}

    content = BuildRecord(
        dataset=dataset,
        kind="parallel",
        languages=languages,
        num_units=records[0].num_units,
        frame_rate_hz=records[0].frame_rate_hz,
        audio_tokenizer=records[0].audio_tokenizer,
        settings={
            record.config: {"source": record.source, **record.settings, "fit": record.fit}
            for record in records
        },
        splits={
            record.config: {record.split: {"rows": record.rows, "shards": record.num_shards}}
            for record in records
        },
        clips=total("clips"),
        seconds={code: round(seconds, 2) for code, seconds in total("seconds").items()},
        units=total("units"),
        synthesized=0,
        dropped=dict(sorted(Counter(line["reason"] for line in dropped).items())),
        voices=voices_of(splits),
    )
    write_json(folder / "build.json", asdict(content))
    return content
