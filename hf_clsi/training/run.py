"""A recipe and training stories become a trained model, its loss curve and its ledger, by plain Trainers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..batches.collator import InterleavingDataCollator
from ..configuration_clsi import ClsiConfig
from ..modeling_clsi import ClsiForCausalLM
from .budget import ANY_LANGUAGE, NO_LIMIT, Ledger, StagePlan, StoryLengths, plan_stage, stage_budgets
from .recipes import Recipe

if TYPE_CHECKING:
    from ..units.merges import UnitMerges


@dataclass
class TrainingStories:
    """Stories ready for training, in memory or memory-mapped: everything is indexed by story.

    Attributes:
        ids: story ids.
        tokens: language -> story -> sentence -> token array (deduplicated and merged).
        units: language -> story -> sentence -> raw unit array, for the ledger.
    """

    ids: Sequence[str]
    tokens: Mapping[str, Sequence[Sequence[np.ndarray]]]
    units: Mapping[str, Sequence[Sequence[np.ndarray]]]

    def lengths(self) -> StoryLengths:
        return StoryLengths.of(self.ids, self.tokens)


class PlannedDocuments(Dataset):
    """The rows of a stage's plan: document i as the collator takes it."""

    def __init__(self, plan: StagePlan, stories: TrainingStories, languages: Sequence[str]):
        self.plan, self.stories, self.languages = plan, stories, tuple(languages)

    def __len__(self) -> int:
        return len(self.plan.story)

    def __getitem__(self, index: int) -> dict[str, Any]:
        plan, stories = self.plan, self.stories
        story, partner = int(plan.story[index]), int(plan.partner[index])
        row: dict[str, Any] = {"story_id": stories.ids[story], "epoch": int(plan.epoch[index])}
        for position, code in enumerate(self.languages):
            source = partner if partner >= 0 and position > 0 else story
            row[f"tokens_{code}"] = stories.tokens[code][source]
            row[f"units_{code}"] = stories.units[code][source]
        if plan.language[index] != ANY_LANGUAGE:
            row["language"] = self.languages[plan.language[index]]
        if plan.max_tokens[index] != NO_LIMIT:
            row["max_tokens"] = int(plan.max_tokens[index])
        return row


class _PlannedBatches(Sampler):
    def __init__(self, plan: StagePlan):
        self.batches = plan.batches

    def __len__(self) -> int:
        return len(self.batches) - 1

    def __iter__(self):
        for start, stop in zip(self.batches[:-1], self.batches[1:], strict=True):
            yield list(range(start, stop))


class LedgerTrainer(Trainer):
    """The Trainer, reading a stage's plan in its order and writing into the ledger what it really fed."""

    def __init__(self, *args, plan: StagePlan, ledger: Ledger, **kwargs):
        super().__init__(*args, **kwargs)
        self.plan, self.ledger = plan, ledger

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train_dataset,
            batch_sampler=_PlannedBatches(self.plan),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def training_step(self, model, inputs, *args, **kwargs):
        inputs = dict(inputs)
        self.ledger.add(inputs.pop("token_counts").cpu().numpy())
        return super().training_step(model, inputs, *args, **kwargs)


class _Progress(TrainerCallback):
    """Reports losses and tokens to the caller; closes the ledger's step."""

    def __init__(self, stage: str, ledger: Ledger, curve: list, report: Callable[[dict], None] | None):
        self.stage, self.ledger, self.curve, self.report = stage, ledger, curve, report

    def on_step_end(self, args, state, control, **kwargs):
        self.ledger.step()
        if state.global_step == state.max_steps:
            control.should_log = True  # so that the curve reaches the end of the stage

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        entry = {
            "stage": self.stage,
            "step": state.global_step,
            "tokens": self.ledger.tokens(),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
        }
        self.curve.append(entry)
        if self.report is not None:
            self.report(entry)


def learning_rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up over `warmup_share` of `total` steps, then linear decay to zero; step counts from 0.

    >>> [round(learning_rate_factor(step, 10, 0.2), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 0.889, 0.111]
    """
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / (total - warmup + 1))


def new_model(
    recipe: Recipe, merges: UnitMerges, frame_rate_hz: float, sampling_rate_hz: int
) -> ClsiForCausalLM:
    """A model of the recipe's settings with random weights, seeded by the recipe; on the CPU, in float32."""
    config = ClsiConfig(
        text_config=recipe.model.text_config,  # copied by the config
        num_units=merges.num_units,
        num_merges=merges.num_merges,
        deduplicate=merges.deduplicate,
        separator=recipe.batch.separator,
        frame_rate=frame_rate_hz,
        sampling_rate=sampling_rate_hz,
        languages=list(recipe.languages),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return ClsiForCausalLM(config)


def _plan(recipe: Recipe, lengths: StoryLengths) -> list[StagePlan]:
    """All stages, each with the budgets that the plans before it leave."""
    ledger = Ledger(recipe.languages, dict.fromkeys(recipe.languages, 1), frame_rate_hz=1.0)
    plans = []
    for stage in recipe.stages:
        plans.append(
            plan_stage(
                stage,
                stage_budgets(recipe, stage, ledger),
                lengths,
                recipe.languages,
                recipe.batch.tokens_per_step,
                recipe.seed,
            )
        )
        ledger.open(stage.name, stage.mode)
        ledger.add(np.stack([plans[-1].tokens, np.zeros_like(plans[-1].tokens)], axis=1))
    return plans


@contextmanager
def _untouched_random_state() -> Iterator[None]:
    """Afterwards the global generators, which a Trainer seeds, are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@dataclass
class TrainingResult:
    """What a run leaves: the model (eval mode), its loss curve and its ledger entry."""

    model: ClsiForCausalLM
    curve: list[dict[str, Any]]
    ledger: dict[str, Any]


class RecipeRun:
    """Runs a recipe's stages in order on one model, optimizer state included.

    Args:
        recipe: complete settings.
        stories: training stories, merged with `merges`.
        merges: the vocabulary.
        model: to start from (`new_model`, or training/initialize.py); its weights are trained in place.
        frame_rate_hz: of the raw units.
        output_dir: where the Trainer may write; nothing of it is needed afterwards.
        report: called with every logged entry of the loss curve.
        logging_steps: steps between two entries.

    The stages are planned at once, so that a budget that cannot be met is refused before the first step.

    Raises:
        ValueError: stories that lack a language, or that `plan_stage` refuses; stages run out of order.
        RuntimeError: after a stage, the ledger disagrees with the plan; more than one process.
    """

    def __init__(
        self,
        recipe: Recipe,
        stories: TrainingStories,
        merges: UnitMerges,
        model: ClsiForCausalLM,
        frame_rate_hz: float,
        output_dir: str | Path,
        report: Callable[[dict], None] | None = None,
        logging_steps: int = 10,
    ):
        self.recipe, self.stories, self.merges, self.model = recipe, stories, merges, model
        self.output_dir, self.report, self.logging_steps = Path(output_dir), report, logging_steps
        for code in recipe.languages:
            if code not in stories.tokens or code not in stories.units:
                raise ValueError(
                    f"recipe '{recipe.name}' needs tokens and units in {code}; the stories have none."
                )
        lengths = stories.lengths()
        corpus = {code: int(lengths.tokens[code].sum()) for code in recipe.languages}
        self.ledger = Ledger(recipe.languages, corpus, frame_rate_hz)
        self.plans = _plan(recipe, lengths)
        self.curve: list[dict[str, Any]] = []
        settings = recipe.optimizer
        decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]  # norms and biases
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )

    def run(self) -> TrainingResult:
        """All stages."""
        for index in range(len(self.recipe.stages)):
            self.run_stage(index)
        return self.finish()

    def finish(self) -> TrainingResult:
        """The model in eval mode, with curve and ledger."""
        self.model.eval()
        return TrainingResult(self.model, self.curve, self.ledger.to_dict())

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next stage depends on, copied: another run may `restore` it."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "stages": self.ledger.stages,
                "curve": self.curve,
            }
        )

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from where another run was, whose settings and stages up to there are this one's.

        Raises:
            RuntimeError: the other run has fed other tokens than this one plans for those stages.
        """
        snapshot = copy.deepcopy(snapshot)
        for stage, plan in zip(snapshot["stages"], self.plans, strict=False):
            self._compare(stage, plan)
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.ledger.stages = snapshot["stages"]
        self.curve[:] = snapshot["curve"]

    def run_stage(self, index: int) -> None:
        """One stage, exactly on its budget; the stages before it must have been run."""
        recipe, stage, plan = self.recipe, self.recipe.stages[index], self.plans[index]
        if index != len(self.ledger.stages):
            raise ValueError(f"stage {index} cannot be run now; the next one is {len(self.ledger.stages)}.")
        arguments = self._arguments(plan)
        if arguments.world_size > 1:
            raise RuntimeError(
                f"this is one of {arguments.world_size} processes, and each would read the whole budget; run "
                "a recipe in one process."
            )
        self.ledger.open(stage.name, stage.mode)
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._schedule(index))
        with _untouched_random_state():
            trainer = LedgerTrainer(
                model=self.model,
                args=arguments,
                train_dataset=PlannedDocuments(plan, self.stories, recipe.languages),
                data_collator=self._collator(),
                callbacks=[_Progress(stage.name, self.ledger, self.curve, self.report)],
                optimizers=(self.optimizer, scheduler),
                plan=plan,
                ledger=self.ledger,
            )
            trainer.remove_callback(PrinterCallback)  # `report` shows progress
            trainer.train()
        # What a Trainer leaves on a model: autocast around its forward, the mark that this has been done (the
        # next stage does it again), and a flag in the config.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(self.model).pop(name, None)
        vars(self.model.config).pop("use_cache", None)
        self._compare(self.ledger.stages[-1], plan)

    def _compare(self, fed: dict[str, Any], plan: StagePlan) -> None:
        """A stage's entry in the ledger against its plan."""
        planned = dict(zip(self.recipe.languages, plan.tokens.tolist(), strict=True))
        if fed["tokens"] != planned or fed["steps"] != plan.num_steps:
            raise RuntimeError(
                f"stage '{fed['stage']}' of {self.recipe.name} fed {fed['tokens']} tokens in {fed['steps']} "
                f"steps; its plan says {planned} in {plan.num_steps}. Have the stories changed since?"
            )

    def _schedule(self, index: int) -> Callable[[int], float]:
        """Step of stage `index` -> share of the peak learning rate."""
        settings, steps = self.recipe.optimizer, [plan.num_steps for plan in self.plans]
        done, total = (0, steps[index]) if settings.schedule == "stage" else (sum(steps[:index]), sum(steps))
        return lambda step: learning_rate_factor(done + step, total, settings.warmup_share)

    def _collator(self) -> InterleavingDataCollator:
        batch = self.recipe.batch
        return InterleavingDataCollator(
            self.recipe.languages,
            merges=self.merges,
            max_length=batch.max_length,
            seed=self.recipe.seed,
            packing=batch.packing,
            isolate=batch.isolate,
            separator=batch.separator,
            pad_to_max_length=False,
            return_counts=True,
        )

    def _arguments(self, plan: StagePlan) -> TrainingArguments:
        settings = self.recipe.optimizer
        cuda = torch.cuda.is_available()
        return TrainingArguments(
            output_dir=str(self.output_dir),
            max_steps=plan.num_steps,
            per_device_train_batch_size=1,  # the plan makes the batches
            max_grad_norm=settings.max_grad_norm,
            logging_steps=self.logging_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=self.recipe.seed,
            use_cpu=not cuda,
            bf16=cuda and self.recipe.model.dtype == "bfloat16",
            dataloader_pin_memory=cuda,
        )


def save_run(result: TrainingResult, recipe: Recipe, folder: str | Path) -> None:
    """The model in safetensors, with `recipe.json` (`Recipe.from_dict` reads it) and `training.json`."""
    folder = Path(folder)
    result.model.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(
        json.dumps({"curve": result.curve, "ledger": result.ledger}, indent=1) + "\n", encoding="utf-8"
    )
