"""Turns a finished dataset folder into a report of its faults: counts by reason, with the ids.

    report = validate_dataset("tinystories-en-fr", against=["spoken-storycloze"])
    report.ok, report.counts    False, {"leaked_text": 3}
    report.save("check.json")   the report; check.jsonl beside it lists every finding, one a line

Any folder of this layout will do, with build.json or encoding.json or neither (a copy from the Hub):
README.md names the splits, kind and languages are read off the columns. What cannot be checked is listed as
not done.

| level | means |
|---|---|
| error | the dataset is wrong: do not publish it, do not score with it. `report.ok` is False |
| warning | improbable; look at it |
| info | worth knowing, as a share of test endings that occur word for word in training stories |

Algorithm: one pass over ids, texts and units in Arrow and numpy, a batch at a time; a second one over the
audio, clip by clip (in processes, if asked). Memory is flat but for 64-bit digests that find duplicates and
leaks: for every row one of its id, its number and its speaker, one a language for the text, the units and the
extremes of the speaking rate, that is 24 + 24 L bytes (72 for two languages, 250 MB for 3.4 million stories);
of cloze rows 112. For sentences 8 bytes each, but only of splits other than train. Two of n = 10 million
texts get the same digest by chance with a probability of n^2 / 2^65 = 3e-6.

Texts are compared after NFKC, lower case, and with everything but letters, marks and digits as one space.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from .validation.across import (
    check_copies,
    check_directions,
    check_duplicates,
    check_leakage,
    check_speaking_rates,
    sentence_shares,
)
from .validation.clips import check_audio
from .validation.folder import DatasetFolder, open_folder, open_other
from .validation.report import LEVELS, REASONS, Findings, ValidationLimits, ValidationReport
from .validation.scan import Scan, sentence_probes

__all__ = ["ValidationLimits", "ValidationReport", "check_command", "validate_dataset"]


def validate_dataset(
    folder: str | Path,
    *,
    against: Sequence[str | Path] = (),
    num_units: int | None = None,
    frame_rate_hz: float | None = None,
    audio: bool = True,
    num_workers: int = 1,
    progress: bool = True,
    limits: ValidationLimits | None = None,
) -> ValidationReport:
    """Check a dataset folder: files, rows, durations, audio, duplicates, directions and leakage.

    Args:
        folder: story, parallel, cloze or pair rows, made by us or downloaded from the Hub.
        against: other dataset folders that must not share rows with this one: the stories that models train
            on, the benchmarks that they are scored with. A split called train is for training, all others
            are for evaluation; a row that a training and an evaluation split share is an error.
        num_units, frame_rate_hz: of the audio tokenizer. None: as build.json, encoding.json or the config of
            audio_tokenizer/ say; the checks that need them are listed as not done where nothing does.
        audio: decode and check every clip.
        num_workers: processes that do so; each is started anew and imports this package (seconds), so a
            script that asks for several needs the usual `if __name__ == "__main__"`.
        limits: None: `ValidationLimits()`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an impossible argument; a folder of `against` that holds no rows, or is the folder itself.
    """
    limits = limits or ValidationLimits()
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    for name, value in (("num_units", num_units), ("frame_rate_hz", frame_rate_hz)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    started = time.monotonic()
    findings = Findings()
    own = open_folder(folder, findings)
    own.num_units = num_units or own.num_units
    own.frame_rate_hz = frame_rate_hz or own.frame_rate_hz
    not_done: list[str] = []
    others = [open_other(place, own, not_done) for place in against]

    scan = Scan(findings, limits)
    probes = [probe for dataset in (own, *others) for probe in sentence_probes(dataset)]
    rows_read = sum(table.num_rows for dataset in (own, *others) for table in dataset.tables)
    with tqdm(total=rows_read, desc="rows", unit="row", disable=not progress) as bar:
        for dataset in (own, *others):
            checked = dataset is own
            # Sentences of two foreign datasets are not compared with each other.
            asked = probes if checked else [probe for probe in probes if probe.dataset is own]
            for table in dataset.tables:
                scan.run(table, asked if table.is_training and not table.is_copy else [], checked, bar)
    for table in own.tables:
        check_speaking_rates(table, findings, not_done, limits)
        check_duplicates(table, findings)
    if own.kind == "cloze":
        check_directions(own, findings, not_done)
    elif own.kind in ("story", "parallel"):
        check_copies(own, findings)
    check_leakage(own, others, findings, not_done)
    shares = sentence_shares(own, probes, findings)
    not_done += _not_done(own, audio)
    seconds = {"rows": time.monotonic() - started, "audio": 0.0}

    clips, audio_seconds = 0, 0.0
    if audio and any(table.has_audio for table in own.tables):
        started = time.monotonic()
        clips, audio_seconds = check_audio(own, findings, not_done, limits, num_workers, progress)
        seconds["audio"] = time.monotonic() - started

    order = {level: i for i, level in enumerate(LEVELS)}
    ranked = sorted(
        findings.counts, key=lambda reason: (order[REASONS[reason][0]], list(REASONS).index(reason))
    )
    return ValidationReport(
        folder=str(folder),
        kind=own.kind,
        languages=own.languages,
        splits={table.where: table.num_rows for table in own.tables},
        against=[str(place) for place in against],
        num_units=own.num_units,
        frame_rate_hz=own.frame_rate_hz,
        counts={reason: findings.counts[reason] for reason in ranked},
        examples={reason: findings.first[reason] for reason in ranked},
        shares=shares,
        not_done=list(dict.fromkeys(not_done)),
        rows_read=rows_read,
        clips=clips,
        audio_seconds=audio_seconds,
        seconds=seconds,
        limits=limits,
        _lines=findings.lines,
    )


def check_command(
    folder: str | Path,
    against: Sequence[str | Path] = (),
    *,
    num_units: int | None = None,
    frame_rate_hz: float | None = None,
    audio: bool = True,
    num_workers: int = 1,
    progress: bool = True,
    report_path: str | Path | None = None,
) -> int:
    """Check a folder and print the report -> exit code: 0 without errors, 1 with.

    report_path: where the report goes, a .json file; all findings go beside it as .jsonl. None:
    validation.json in the folder itself, where that can be written.
    """
    report = validate_dataset(
        folder,
        against=against,
        num_units=num_units,
        frame_rate_hz=frame_rate_hz,
        audio=audio,
        num_workers=num_workers,
        progress=progress,
    )
    print(report.text())
    try:
        lines = report.save(report_path or Path(folder) / "validation.json")
    except OSError as error:
        if report_path is not None:
            raise
        print(f"the report is not saved: {error}; name another place for it")
    else:
        print(f"every finding with its id: {lines}")
    return 0 if report.ok else 1


def _not_done(own: DatasetFolder, audio: bool) -> list[str]:
    """What the folder itself, or the caller, left unchecked."""
    if own.kind is None:
        return ["all checks of rows: their kind is unknown"]
    sides = [side for table in own.tables for side in table.sides]
    lines = []
    if own.num_units is None:
        lines.append("range of unit ids: how many units there are is unknown; give num_units")
    if own.frame_rate_hz is None and any(side.audio or side.seconds for side in sides):
        lines.append("durations against units: the frame rate is unknown; give frame_rate_hz")
    if not any(side.text for side in sides):
        lines.append("texts (duplicates, leakage, speaking rate): there are no text columns")
    if not any(side.audio for side in sides):
        lines.append("audio: there are no audio columns")
    elif not audio:
        lines.append("audio: it was not asked for")
    for table in own.tables:
        lacking = [side.name for side in table.sides if side.units is None]
        if lacking:
            lines.append(f"units of {table.where}: {', '.join(lacking)} has none of the right type")
    return lines
