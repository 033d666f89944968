"""One process of the experiment: trains and evaluates some recipes, one after the other.

`python -m hf_clsi.experiment.job JOB.json` is started by `reproduce`, one process per share of the cores. It
prints one JSON object a line on standard output, which the parent turns into a progress bar. A recipe that is
finished (its part file is there) is not run again.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..feature_extraction_clsi import ClsiFeatureExtractor
from ..modeling_clsi import ClsiForCausalLM
from ..modeling_clsi_units import ClsiUnitsModel
from ..processing_clsi import ClsiProcessor
from ..rows.shards import UnitColumn, list_shards, read_columns
from ..scores.alignment import cross_lingual_alignment
from ..scores.cloze import write_item_scores
from ..scores.likelihood import score_items
from ..text.cloze import TASKS, directions
from ..training.recipes import Recipe, recipe
from ..training.run import RecipeRun, TrainingStories, new_model, save_run
from ..units.merges import UnitMerges
from .presets import Preset, preset

Report = Callable[[dict[str, Any]], None]
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Job:
    """What a process has to do; plain types, saved as JSON."""

    preset: str
    folder: str
    seed: int
    split: str
    chain: list[str]
    num_threads: int
    changes: dict[str, Any]

    def settings(self) -> Preset:
        return preset(self.preset, self.changes)


def main(argv: list[str] | None = None) -> int:
    path = Path((sys.argv[1:] if argv is None else argv)[0])
    job = Job(**json.loads(path.read_text()))
    output = sys.stdout
    sys.stdout = sys.stderr  # libraries may print; standard output carries the protocol only

    def report(message: dict[str, Any]) -> None:
        output.write(json.dumps(message) + "\n")
        output.flush()

    run_chain(job, report)
    return 0


def run_chain(job: Job, report: Report) -> None:
    """Train and evaluate the job's recipes. Recipes that begin with the same stages share them.

    A shared stage is computed once and its end (weights, optimizer, ledger, curve) copied: with the same seed
    and settings it would come out bit for bit the same.
    """
    torch.set_num_threads(job.num_threads)
    settings, folder = job.settings(), Path(job.folder)
    corpus = Corpus(folder, settings)
    snapshots: list[tuple[Recipe, int, dict]] = []
    for name in job.chain:
        part = folder / "parts" / f"{name}.json"
        if part.is_file():
            continue
        plan = recipe(name, settings.training, settings.languages, job.seed)
        started = time.monotonic()
        run = RecipeRun(
            plan,
            corpus.stories,
            corpus.merges,
            new_model(plan, corpus.merges, corpus.frame_rate_hz, corpus.sampling_rate_hz),
            corpus.frame_rate_hz,
            folder / "work" / name,
            report=lambda entry, name=name: report({"recipe": name, "tokens": entry["tokens"], "loss": entry["loss"]}),
            logging_steps=20,
        )
        start = 0
        for other, stages, snapshot in snapshots:
            if stages > start and _same_beginning(plan, other, stages):
                start = stages
                run.restore(snapshot)
        for index in range(start, len(plan.stages)):
            run.run_stage(index)
            if index + 1 < len(plan.stages):
                snapshots.append((plan, index + 1, run.snapshot()))
        result = run.finish()
        trained = time.monotonic()
        model_folder = folder / "models" / name
        save_run(result, plan, model_folder)
        save_processor(corpus, model_folder)
        report({"recipe": name, "tokens": sum(result.ledger["total"]["tokens"].values()), "phase": "evaluate"})
        alignment = evaluate(result.model, name, corpus, job)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(
            json.dumps(
                {
                    "recipe": name,
                    "settings": plan.to_dict(),
                    "parameters": sum(p.numel() for p in result.model.parameters()),
                    "ledger": result.ledger,
                    "curve": result.curve,
                    "alignment": alignment,
                    "seconds": {
                        "training": round(trained - started, 1),
                        "evaluation": round(time.monotonic() - trained, 1),
                    },
                }
            )
        )


def _same_beginning(a: Recipe, b: Recipe, stages: int) -> bool:
    """Whether two recipes are equal but for their names and the stages after the first `stages`."""
    if a.optimizer.schedule != "stage":  # a schedule over the whole run depends on the later stages
        return False
    return replace(a, name="", stages=a.stages[:stages], matched_with=None) == replace(
        b, name="", stages=b.stages[:stages], matched_with=None
    )


class Corpus:
    """The built data, read back: training stories as tokens, and the vocabulary."""

    def __init__(self, folder: Path, settings: Preset):
        self.folder, self.settings = folder, settings
        self.tokenizer = ClsiUnitsModel.from_pretrained(folder / "audio_tokenizer")
        self.merges = UnitMerges.load(folder / "audio_tokenizer")
        self.frame_rate_hz = self.tokenizer.config.frame_rate
        self.sampling_rate_hz = self.tokenizer.config.sampling_rate
        columns = read_columns(folder / "data" / "stories", "train")
        units = {code: nested(columns[f"units_{code}"]) for code in settings.languages}
        self.stories = TrainingStories(
            ids=list(columns["story_id"]),
            units=units,
            tokens={code: merge_nested(self.merges, stories) for code, stories in units.items()},
        )

    def items(self, task: str, split: str) -> list[dict[str, Any]]:
        """Cloze items of all directions, with tokens ready for `score_items`, in a fixed order."""
        found = []
        for prompt_language, ending_language in directions(self.settings.languages):
            same = prompt_language == ending_language
            config = prompt_language if same else f"{prompt_language}-{ending_language}"
            columns = read_columns(self.folder / "data" / f"spoken-{task}", split, config=config)
            prompts = merge_nested(self.merges, nested(columns["prompt_units"]))
            sides = {
                side: self.merges.encode(flat(columns[f"{side}_units"])) for side in ("correct", "negative")
            }
            keys = ("id", "holdout", "topic", "negative_topic", "prompt_language", "ending_language")
            for index, prompt in enumerate(prompts):
                found.append(
                    {
                        "prompt": prompt,
                        "correct": sides["correct"][index],
                        "negative": sides["negative"][index],
                        **{key: columns[key][index] for key in keys},
                    }
                )
        return found

    def aligned_sentences(self, split: str) -> dict[str, list[np.ndarray]]:
        """Distinct aligned sentences of held-out topic-cloze stories, as tokens, in a fixed order."""
        first, second = self.settings.languages
        folder = self.folder / "data" / "spoken-topiccloze"
        columns = {code: read_columns(folder, split, config=code) for code in (first, second)}
        stories = {code: nested(columns[code]["prompt_units"]) for code in (first, second)}
        pairs: dict[tuple[bytes, bytes], tuple[np.ndarray, np.ndarray]] = {}
        seen: tuple[set, set] = (set(), set())
        for index in range(len(stories[first])):
            if columns[first]["holdout"][index] != "strict":
                continue
            sentence = index % len(stories[first][index])
            a, b = stories[first][index][sentence], stories[second][index][sentence]
            key = (a.tobytes(), b.tobytes())
            if key[0] not in seen[0] and key[1] not in seen[1]:  # retrieval needs distinct sentences
                seen[0].add(key[0])
                seen[1].add(key[1])
                pairs[key] = (a, b)
            if len(pairs) == self.settings.alignment_pairs:
                break
        return {
            first: self.merges.encode([a for a, _ in pairs.values()]),
            second: self.merges.encode([b for _, b in pairs.values()]),
        }

    def recorded_sentences(self) -> dict[str, list[np.ndarray]] | None:
        """Aligned recordings of people that `reproduce` encoded, if any, as tokens."""
        folder = self.folder / "data" / "recordings"
        if not folder.is_dir():
            return None
        split = "test"
        if not list_shards(folder, split):
            return None
        columns = read_columns(folder, split)
        return {
            code: self.merges.encode([story[0] for story in nested(columns[f"units_{code}"])])
            for code in self.settings.languages
        }


def flat(column: UnitColumn) -> list[np.ndarray]:
    """One unit array a row (endings)."""
    return [np.asarray(column.units[a:b]) for a, b in zip(column.row_offsets, column.row_offsets[1:], strict=False)]


def nested(column: UnitColumn) -> list[list[np.ndarray]]:
    """One list of unit arrays a row (stories, prompts)."""
    return [list(column.sentences(row)) for row in range(len(column.row_offsets) - 1)]


def merge_nested(merges: UnitMerges, stories: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Raw units -> tokens, keeping stories apart."""
    tokens = iter(merges.encode([sentence for story in stories for sentence in story]))
    return [[next(tokens) for _ in story] for story in stories]


def evaluate(model: ClsiForCausalLM, name: str, corpus: Corpus, job: Job) -> list[dict[str, Any]]:
    """Score all cloze items into items/<name>.jsonl and return the alignment by layer."""
    path = corpus.folder / "items" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    separator = model.config.separator
    ids = {"none": None, "bos": model.config.bos_token_id, "eos": model.config.eos_token_id}
    for task in TASKS:
        items = corpus.items(task, job.split)
        scores = score_items(
            model,
            items,
            bos_token_id=model.config.bos_token_id,
            separator_token_id=ids[separator],
            progress=False,
        )
        keys = ("holdout", "prompt_language", "ending_language", "topic", "negative_topic")
        columns = {key: [item[key] for item in items] for key in keys}
        write_item_scores(path, scores, append=path.is_file(), recipe=name, task=task, **columns)
    return align(model, name, corpus, job)


def align(model: ClsiForCausalLM, name: str, corpus: Corpus, job: Job) -> list[dict[str, Any]]:
    """Hidden-state alignment on held-out stories and, if there are any, on recordings."""
    sets = {"stories": corpus.aligned_sentences(job.split), "parallel-prompts": corpus.recorded_sentences()}
    first, second = corpus.settings.languages
    entries = []
    for data, sentences in sets.items():
        if sentences is None:
            continue
        for layer in cross_lingual_alignment(
            model,
            sentences[first],
            sentences[second],
            bos_token_id=model.config.bos_token_id,
            seed=job.seed,
            progress=False,
        ):
            entries.append({"recipe": name, "data": data, **layer})
    return entries


def untrained_alignment(job: Job) -> list[dict[str, Any]]:
    """The alignment of the same architecture with random weights: what training has to be compared with."""
    settings, corpus = job.settings(), Corpus(Path(job.folder), job.settings())
    plan = recipe("interleave", settings.training, settings.languages, job.seed)
    model = new_model(plan, corpus.merges, corpus.frame_rate_hz, corpus.sampling_rate_hz).eval()
    return align(model, UNTRAINED, corpus, job)


def save_processor(corpus: Corpus, folder: Path) -> None:
    """Feature extractor, unit vocabulary and audio tokenizer beside the model."""
    config = corpus.tokenizer.config
    processor = ClsiProcessor(
        ClsiFeatureExtractor(sampling_rate=config.sampling_rate, frame_rate=config.frame_rate),
        corpus.merges.to_fast_tokenizer(),
        audio_tokenizer=copy.deepcopy(corpus.tokenizer),
        deduplicate=corpus.merges.deduplicate,
    )
    processor.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
