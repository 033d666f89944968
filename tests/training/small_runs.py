"""Small runs for the tests of resuming and of several processes; also a program that torchrun starts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.training import checkpoints
from hf_clsi.training.recipes import (
    BatchSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    TrainingPreset,
    recipe,
)
from hf_clsi.training.run import RecipeRun, TrainingStories, new_model
from hf_clsi.training.stories import listed_table
from hf_clsi.training.trainer import InterleavingTrainer
from hf_clsi.units.merges import UnitMerges

DECODER = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MERGES = UnitMerges(16)


def preset(dropout=0.0, budget_tokens=900, **batch):
    """Dropout is drawn from torch's generator, which a checkpoint must bring back."""
    batch = {"tokens_per_step": 90, "max_length": 40, "separator": "bos"} | batch
    return TrainingPreset(
        budget_tokens=budget_tokens,
        model=ModelSettings(DECODER | {"attention_dropout": dropout}),
        optimizer=OptimizerSettings(learning_rate=1e-2),
        batch=BatchSettings(**batch),
    )


def stories(count=24, sentences=4):
    """English below 8, French from 8 to 15."""
    rng = np.random.default_rng(0)
    units = {
        code: [
            [rng.integers(first, first + 8, rng.integers(2, 7)).astype(np.uint16) for _ in range(sentences)]
            for _ in range(count)
        ]
        for code, first in (("en", 0), ("fr", 8))
    }
    return TrainingStories([f"story-{index}" for index in range(count)], units, units)


class Shards:
    """The same stories in four shards, in memory."""

    languages = ("en", "fr")
    num_shards = 4

    def languages_of(self, shard):
        return frozenset(self.languages)

    def blocks(self, shard, start=0, size=4096):
        all_stories = stories()
        mine = range(shard, len(all_stories.ids), self.num_shards)
        for first in range(start * size, len(mine), size):
            chosen = mine[first : first + size]
            units = {code: [all_stories.units[code][i] for i in chosen] for code in self.languages}
            yield listed_table([all_stories.ids[i] for i in chosen], units, units)


def start(folder, plan=None, data=None, logging_steps=3, **settings):
    plan = recipe("interleave-ft", preset()) if plan is None else plan
    model = new_model(plan, MERGES, frame_rate_hz=12.5, sampling_rate_hz=16000)
    if data is None:
        data = stories() if plan.data.order == "global" else Shards()
    return RecipeRun(plan, data, MERGES, model, 12.5, folder, logging_steps=logging_steps, **settings)


def sharded(plan, lanes=2):
    return replace(plan, data=DataSettings(order="shards", lanes=lanes, block_stories=3))


def digest(model):
    """Of all weights, to the bit."""
    state = model.state_dict()
    together = hashlib.sha256()
    for name in sorted(state):
        together.update(name.encode())
        together.update(np.ascontiguousarray(state[name].numpy()))
    return together.hexdigest()


def outcome(run):
    """What has to be the same, to the bit."""
    result = run.run()
    return {"curve": result.curve, "ledger": result.ledger, "weights": digest(result.model)}


def documents_of(batch, pad):
    """The documents of a packed batch, as tuples of tokens."""
    found = []
    for tokens, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        starts = [*torch.where(positions == 0)[0].tolist(), len(tokens)]
        found += [tuple(tokens[first:last].tolist()) for first, last in pairwise(starts)]
    return [document for document in found if document[0] != pad]


def record_documents(model):
    """Grows with the documents of every forward in training."""
    fed = []

    def hook(module, args, inputs):
        if module.training:
            fed.append(documents_of(inputs, model.config.pad_token_id))

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return fed


def plain_training(folder, rows_per_device=4, accumulation=1):
    """The plain loop of the library on rows, with accounts: 24 rows, 2 epochs -> what was logged."""
    collator = InterleavingDataCollator(
        ["en", "fr"], num_units=16, max_length=40, return_counts=True, return_languages=True
    )
    source = stories()
    rows = [
        {"story_id": name, "units_en": source.units["en"][i], "units_fr": source.units["fr"][i]}
        for i, name in enumerate(source.ids)
    ]
    trainer = InterleavingTrainer(
        new_model(recipe("interleave", preset()), MERGES, 12.5, 16000),
        TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=rows_per_device,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=rows,
        data_collator=collator,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# --- the program --------------------------------------------------------------------------------------------


def in_processes(folder: Path) -> dict:
    """Two runs, one of them resumed in the middle of a stage; what every process has fed."""
    plan = recipe("interleave-ft", preset(dropout=0.1))
    undisturbed = start(folder / "whole", plan, save_steps=1, save_total_limit=None)
    whole = outcome(undisturbed)
    rank, world = undisturbed.feed.rank, undisturbed.feed.world_size
    again = []
    for step in (3, 5):
        copied = folder / f"from-{step}"
        if rank == 0:
            shutil.copytree(folder / "whole" / f"checkpoint-{step}", copied / f"checkpoint-{step}")
        torch.distributed.barrier()
        again.append(outcome(start(copied, plan, save_steps=1)) == whole)
    fed = {}
    found = {}
    cases = {
        "global": recipe("interleave-ft", preset()),
        "forwards": recipe("interleave-ft", preset(rows_per_forward=1)),
        "shards": sharded(recipe("interleave-ft", preset())),
    }
    for name, plan in cases.items():
        run = start(folder / name, plan, logging_steps=1)
        fed[name] = record_documents(run.model)
        found[name] = outcome(run) | {
            "values": {key: value.tolist() for key, value in run.model.state_dict().items()}
        }
    return {
        "folder": str(folder), "rank": rank, "world": world,
        "whole": whole, "resumed": again, "fed": fed, "found": found,
        "logs": plain_training(folder / "plain", rows_per_device=4 // world),
    }  # fmt: skip


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    what, folder = argv[0], Path(argv[1])
    if what == "processes":
        report = in_processes(folder)
        (folder / f"report-{report['rank']}.json").write_text(json.dumps(report))
        return
    # "run": one recipe, killed while it writes a checkpoint if a function of checkpoints.py is named.
    options = json.loads(argv[2])
    if "kill_in" in options:
        name, step = options["kill_in"]
        original = getattr(checkpoints, name)

        def last(*args, **kwargs):
            folders = [each for each in args if isinstance(each, Path)]
            if any(f"checkpoint-{step}" in str(each) for each in folders):
                original(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(checkpoints, name, last)
    plan = recipe("interleave-ft", preset(dropout=0.1, budget_tokens=options.get("budget_tokens", 900)))
    run = start(folder, plan, save_steps=options.get("save_steps", 1))
    found = outcome(run)
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "outcome.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # a process that is gone takes the others' connections with it
        torch.distributed.destroy_process_group()
