"""A preset and a seed become report.md, report.png, results.json and ledger.json: the whole experiment."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..hub.report import write_report
from ..scores.cloze import cloze_rows, comparison, read_item_scores
from ..text.cloze import TASKS, directions
from ..training.budget import matched
from ..training.recipes import RECIPES, Recipe, recipe
from .data import HOLDOUTS, build_data
from .job import Job, untrained_alignment
from .presets import Preset, preset

logger = logging.getLogger(__name__)

#: Pairs of recipes that are compared item by item.
COMPARISONS = (
    ("interleave", "baseline-en-fr"),
    ("interleave-ft", "baseline-en-fr"),
    ("interleave", "interleave-unaligned"),
    ("interleave-ft", "interleave"),
)
_PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "espeakng-loader")


def reproduce(
    preset_name: str,
    output_dir: str | Path,
    seed: int = 0,
    num_processes: int | None = None,
    recipes: Sequence[str] | None = None,
    progress: bool = True,
    resume: bool = True,
    split: str = "test",
    recordings: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the experiment and return its results (the content of results.json).

    Args:
        preset_name: "tiny", "small" or "gpu" (experiment/presets.py).
        output_dir: gets report.md, report.png, results.json, ledger.json, times.json, items/, data/, models/,
            audio_tokenizer/.
        seed: of everything random: held-out content, stories, k-means, weights, order and language draws.
        num_processes: processes for synthesis and training; all cores by default.
        recipes: names to train; all by default.
        progress: bars on standard error.
        resume: go on with what is there from the same settings; False begins anew.
        split: "test", or "dev" to make choices without touching the test items.
        recordings: a folder of recordings aligned across the two languages (as `hf-clsi encode` takes it), on
            which the alignment is reported too.
        changes: settings of the preset to change, by dotted name (experiment/presets.py).

    Raises:
        ValueError: unknown preset, setting, recipe or split, or a folder that holds a run of other settings.
        RuntimeError: a training process failed; the message holds the end of its log.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split must be 'test' or 'dev', got '{split}'.")
    settings = preset(preset_name, changes)
    names = list(recipes or RECIPES)
    plans = {name: recipe(name, settings.training, settings.languages, seed) for name in names}
    num_processes = num_processes or len(os.sched_getaffinity(0))
    folder = Path(output_dir)
    _claim(folder, {"preset": settings.to_dict(), "seed": seed, "split": split}, resume)

    times = {}
    started = time.monotonic()
    summary = build_data(settings, folder, seed, split, num_processes, progress)
    if recordings is not None:
        _encode_recordings(recordings, folder, settings, progress)
    times["data"] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    threads = max(1, num_processes // 2) if num_processes > 2 else 1
    base = Job(preset_name, str(folder.resolve()), seed, split, [], threads, dict(changes or {}))
    _train(base, plans, num_processes // threads, progress)
    times["training and evaluation"] = round(time.monotonic() - started, 1)

    started = time.monotonic()
    parts = {name: json.loads((folder / "parts" / f"{name}.json").read_text()) for name in names}
    results = _results(folder, settings, seed, split, summary, parts)
    results["alignment"] += untrained_alignment(base)
    ledger = {
        "recipes": {name: part["ledger"] for name, part in parts.items()},
        "matched": matched(
            {name: part["ledger"] for name, part in parts.items()},
            [(plan.matched_with, name) for name, plan in plans.items() if plan.matched_with],
        ),
    }
    _write_json(folder / "results.json", results)
    _write_json(folder / "ledger.json", ledger)
    write_report(folder, results, ledger)
    times["report"] = round(time.monotonic() - started, 1)
    times["recipes"] = {name: part["seconds"] for name, part in parts.items()}
    _write_json(folder / "times.json", times)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return results


def _claim(folder: Path, stamp: dict[str, Any], resume: bool) -> None:
    """Make the output folder this run's: begin anew, go on, or refuse a run of other settings."""
    path = folder / "run.json"
    stamp = json.loads(json.dumps(stamp))
    if not resume:
        for name in ("data", "parts", "models", "items", "work", "audio_tokenizer"):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif path.is_file() and json.loads(path.read_text()) != stamp:
        raise ValueError(
            f"{folder} holds a run of other settings (preset, seed or split). Choose another --output-dir, or "
            "begin anew with --overwrite."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, stamp)


def _encode_recordings(recordings: str | Path, folder: Path, settings: Preset, progress: bool) -> None:
    from ..rows.recordings import encode_recordings

    encode_recordings(
        recordings,
        folder / "data" / "recordings",
        audio_tokenizer=str(folder / "audio_tokenizer"),
        languages=list(settings.languages),
        overwrite=True,
        progress=progress,
    )


def _shares(plans: dict[str, Recipe], num_processes: int) -> list[list[str]]:
    """Recipes for each process: those that share a stage together, the heaviest first to the idlest process."""
    cost = {name: sum(sum(s.parts.values()) for s in plan.stages) for name, plan in plans.items()}
    groups = [[name] for name in plans if name not in ("interleave", "interleave-unaligned")]
    together = [name for name in ("interleave", "interleave-unaligned") if name in plans]
    if together:
        groups.append(together)
        if len(together) == 2:  # their first stage is computed once
            cost["interleave-unaligned"] -= sum(plans["interleave-unaligned"].stages[0].parts.values())
    groups.sort(key=lambda group: -sum(cost[name] for name in group))
    shares: list[list[str]] = [[] for _ in range(min(num_processes, len(groups)))]
    for group in groups:
        min(shares, key=lambda share: sum(cost[name] for name in share)).extend(group)
    return shares


def _train(base: Job, plans: dict[str, Recipe], num_processes: int, progress: bool) -> None:
    """Run the recipes in processes of their own, one progress bar over all tokens."""
    folder = Path(base.folder)
    todo = {name: plan for name, plan in plans.items() if not (folder / "parts" / f"{name}.json").is_file()}
    if not todo:
        return
    jobs = folder / "work"
    jobs.mkdir(parents=True, exist_ok=True)
    total = sum(plan.tokens(sum(sum(s.parts.values()) for s in plan.stages)) for plan in todo.values())
    bar = tqdm(total=total, desc="train", unit="tok", unit_scale=True, disable=not progress)
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def follow(process: subprocess.Popen) -> None:
        for line in process.stdout:
            message = json.loads(line)
            with lock:
                name = message["recipe"]
                bar.update(message["tokens"] - seen.get(name, 0))
                seen[name] = message["tokens"]
                bar.set_postfix_str(f"{name} {message.get('phase', format(message.get('loss', 0), '.3f'))}")

    environment = os.environ | {
        "OMP_NUM_THREADS": str(base.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # nothing is downloaded; without this, saving asks the Hub
    }
    processes, readers = [], []
    try:
        for number, chain in enumerate(_shares(todo, num_processes)):
            path = jobs / f"job{number}.json"
            path.write_text(json.dumps(asdict(base) | {"chain": chain}))
            log = tempfile.TemporaryFile(mode="w+")
            process = subprocess.Popen(
                [sys.executable, "-m", "hf_clsi.experiment.job", str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            readers.append(threading.Thread(target=follow, args=(process,), daemon=True))
            readers[-1].start()
            processes.append((process, chain, log))
        for process, chain, log in processes:
            if process.wait() != 0:
                log.seek(0)
                raise RuntimeError(
                    f"the process for {', '.join(chain)} ended with exit code {process.returncode}:\n"
                    + "".join(log.readlines()[-30:])
                )
        for reader in readers:
            reader.join()
    finally:
        for process, _, log in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
            log.close()
        bar.close()


def _results(
    folder: Path, settings: Preset, seed: int, split: str, summary: dict, parts: dict[str, dict]
) -> dict[str, Any]:
    rows, comparisons = [], []
    cells = [
        (task, rule, *direction)
        for task in TASKS
        for rule in HOLDOUTS
        for direction in directions(settings.languages)
    ]
    scored = {}
    for name in parts:
        for cell in cells:
            task, rule, prompt_language, ending_language = cell
            where = {
                "task": task,
                "holdout": rule,
                "prompt_language": prompt_language,
                "ending_language": ending_language,
            }
            scores, columns = read_item_scores(folder / "items" / f"{name}.jsonl", **where)
            scored[name, cell] = (scores, columns["topic"], where)
            rows += cloze_rows(scores, recipe=name, clusters=columns["topic"], seed=seed, **where)
    for a, b in COMPARISONS:
        if a in parts and b in parts:
            for cell in cells:
                scores_a, topics, where = scored[a, cell]
                scores_b, _, _ = scored[b, cell]
                comparisons += comparison(scores_a, scores_b, a=a, b=b, clusters=topics, seed=seed, **where)
    return {
        "settings": {
            "preset": settings.name,
            "seed": seed,
            "split": split,
            "data": summary,
            "speech": asdict(settings.speech),
            "units": asdict(settings.units),
            "training": asdict(settings.training),
            "parameters": {name: part["parameters"] for name, part in parts.items()},
            "items_per_cell": settings.items,
            "same_character": settings.same_character,
            "versions": {
                "python": ".".join(map(str, sys.version_info[:3])),
                **{name: importlib.metadata.version(name) for name in _PACKAGES},
            },
        },
        "headline": settings.headline,
        "rows": rows,
        "comparisons": comparisons,
        "alignment": [entry for part in parts.values() for entry in part["alignment"]],
        "training": {name: part["curve"] for name, part in parts.items()},
    }


def _write_json(path: Path, content: Any) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
