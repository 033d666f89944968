"""The finished shards of a build become a dataset: its card, what was dropped, and build.json."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..units.encode import frame_rate_of, num_units_of
from .build_card import build_card, public
from .cards import write_card
from .jobs import Tools
from .plan import BUILD_FOLDER, BuildPlan, BuildRecord, ShardSummary, drafts_path, write_json
from .shards import PARTIAL


def finish(folder: str | Path) -> BuildRecord:
    """Write dropped.jsonl, the card and build.json of a folder whose shards are all there.

    RuntimeError: some are not; the message says how many.
    """
    folder = Path(folder)
    plan = BuildPlan.load(folder)
    missing = plan.missing_shards(folder)
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {sum(plan.shards.values())} shards of {folder} are missing, the first: "
            f"{missing[0][0]} {missing[0][1]}; run the same build again"
        )
    summaries = [ShardSummary.load(folder, *shard) for shard in plan.all_shards()]
    planned = json.loads((folder / BUILD_FOLDER / "dropped.json").read_text(encoding="utf-8"))["dropped"]
    lines = [{"split": None, **drop} for drop in planned]
    lines += [{"split": each.split, **drop} for each in summaries for drop in each.dropped]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    _replace(folder / "dropped.jsonl", text)

    totals = {name: _sum(getattr(each, name) for each in summaries) for name in ("clips", "seconds", "units")}
    splits: dict[str, dict[str, dict[str, Any]]] = {config: {} for config in plan.columns()}
    for split, number in plan.shards.items():
        parts = [each for each in summaries if each.split == split]
        for config, by_split in splits.items():
            by_split[split] = {"rows": sum(each.rows[config] for each in parts), "shards": number}
            if plan.kind == "story":  # the directions of a cloze item share their speech: no split owns it
                seconds = _sum(each.seconds for each in parts)
                by_split[split]["seconds"] = {code: round(value, 2) for code, value in seconds.items()}
                by_split[split]["units"] = _sum(each.units for each in parts)
    tools = Tools(plan, folder)
    record = BuildRecord(
        dataset=plan.dataset,
        kind=plan.kind,
        languages=plan.languages,
        num_units=num_units_of(tools.tokenizer),
        frame_rate_hz=frame_rate_of(tools.tokenizer),
        audio_tokenizer=tools.label(),
        settings=public(plan.settings),
        splits=splits,
        clips=totals["clips"],
        seconds={language: round(value, 2) for language, value in totals["seconds"].items()},
        units=totals["units"],
        synthesized=sum(each.synthesized for each in summaries),
        dropped=dict(sorted(Counter(line["reason"] for line in lines).items())),
        voices=_voice_rows(plan, _sum(each.speakers for each in summaries)),
        record=plan.record,
        stage_seconds=_sum(each.stage_seconds for each in summaries),
    )
    write_card(folder, build_card(plan, record))
    write_json(folder / "build.json", asdict(record))
    shutil.rmtree(drafts_path(folder, "x", 0).parent, ignore_errors=True)
    return record


def _voice_rows(plan: BuildPlan, used: Mapping[str, int]) -> list[dict[str, Any]]:
    rows = [
        {
            "speaker": speaker,
            "rows": used.get(speaker, 0),
            "voices": {code: each["voice"] for code, each in by_language.items()},
            "licences": {code: each["licence"] for code, each in by_language.items()},
        }
        for speaker, by_language in plan.voices.items()
    ]
    return public(rows)


def _sum(counts: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    total: Counter = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all; without text there is no file."""
    if not text:
        file.unlink(missing_ok=True)
        return
    temporary = file.with_name(f".{file.name}{PARTIAL}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
