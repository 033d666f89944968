"""A recipe and training stories become a trained model, its loss curve and its ledger, by the plain Trainer."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..batches.collator import InterleavingDataCollator
from ..configuration_clsi import ClsiConfig
from ..modeling_clsi import ClsiForCausalLM
from .budget import ANY_LANGUAGE, NO_LIMIT, Ledger, StagePlan, StoryLengths, plan_stage, stage_budgets
from .recipes import Recipe

if TYPE_CHECKING:
    from ..units.merges import UnitMerges

logger = logging.getLogger(__name__)


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
    """The Trainer, reading a stage's plan in its order and writing into the ledger what it fed to the model."""

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


def new_model(recipe: Recipe, merges: UnitMerges, frame_rate_hz: float, sampling_rate_hz: int) -> ClsiForCausalLM:
    """A model of the recipe's settings with random weights, seeded by the recipe; on the CPU, in float32."""
    config = ClsiConfig(
        text_config=recipe.model.kwargs(),
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
        model: to start from (`new_model`, or training/initialize.py).
        frame_rate_hz: of the raw units.
        output_dir: where the Trainer may write; nothing of it is needed afterwards.
        report: called with every logged entry of the loss curve.
        logging_steps: steps between two entries.

    Raises:
        RuntimeError: after a stage, the ledger disagrees with the plan.
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
        self.lengths = stories.lengths()
        corpus = {code: int(self.lengths.tokens[code].sum()) for code in recipe.languages}
        self.ledger = Ledger(tuple(recipe.languages), corpus, frame_rate_hz)
        self.curve: list[dict[str, Any]] = []
        settings = recipe.optimizer
        decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]  # norms and biases
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self._steps_done = 0

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
                "steps": self._steps_done,
            }
        )

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from where another run of the same model was."""
        snapshot = copy.deepcopy(snapshot)
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.ledger.stages = snapshot["stages"]
        self.curve[:] = snapshot["curve"]
        self._steps_done = snapshot["steps"]

    def run_stage(self, index: int) -> None:
        """One stage, exactly on its budget."""
        recipe, stage = self.recipe, self.recipe.stages[index]
        budgets = stage_budgets(recipe, stage, self.ledger)
        plan = plan_stage(
            stage, budgets, self.lengths, recipe.languages, recipe.batch.tokens_per_step, recipe.seed
        )
        self.ledger.open(stage.name, stage.mode)
        before = self.ledger.tokens()
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._schedule(plan.num_steps))
        trainer = LedgerTrainer(
            model=self.model,
            args=self._arguments(plan),
            train_dataset=PlannedDocuments(plan, self.stories, recipe.languages),
            data_collator=self._collator(),
            callbacks=[_Progress(stage.name, self.ledger, self.curve, self.report)],
            optimizers=(self.optimizer, scheduler),
            plan=plan,
            ledger=self.ledger,
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("ProgressCallback", "PrinterCallback"):
                trainer.remove_callback(callback)  # `report` shows progress
        trainer.train()
        self._steps_done += plan.num_steps
        fed, planned = self.ledger.tokens() - before, sum(budgets.values())
        if fed != planned or self.ledger.stages[-1]["steps"] != plan.num_steps:
            raise RuntimeError(
                f"stage '{stage.name}' of {recipe.name} fed {fed} tokens in {self.ledger.stages[-1]['steps']} "
                f"steps; its plan says {planned} in {plan.num_steps}. Do the stories and the plan come from the "
                "same merges?"
            )

    def _schedule(self, steps: int) -> Callable[[int], float]:
        settings = self.recipe.optimizer
        if settings.schedule == "stage":
            return lambda step: learning_rate_factor(step, steps, settings.warmup_share)
        tokens = sum(sum(self.recipe.tokens(p) for p in stage.parts.values()) for stage in self.recipe.stages)
        total = max(round(tokens / self.recipe.batch.tokens_per_step), self._steps_done + steps)
        done = self._steps_done
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
    """The model in safetensors, with `recipe.json` (effective settings) and `training.json` (curve, ledger)."""
    folder = Path(folder)
    result.model.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=2) + "\n")
    (folder / "training.json").write_text(
        json.dumps({"curve": result.curve, "ledger": result.ledger}, indent=1) + "\n"
    )
