"""The paper's training recipes, each a function that returns complete settings.

Source: arXiv 2512.01865, table of stages (reference row: EN+FR baseline = 100 parts of the budget):

    recipe                stages, in parts of the budget              total / of which second language
    baseline-en           75 EN                                        75 / 0
    baseline-fr           25 FR                                        25 / 25
    baseline-en-fr        75 EN + 25 FR, mixed                        100 / 25
    interleave            65 EN, then 20 interleaved                   85 / 10
    interleave-ft         50 EN, 20 interleaved, 15 EN + 15 FR         100 / 25
    interleave-unaligned  65 EN, then 20 of a control (ours)           85 / 10

The paper's EN+FR row trains on 75k EN and 25k FR steps; in which order is unknown. Here every document is of
one language and both are spread evenly over the stage ("mixed"). The control is not in the paper: sentences
switch language as in interleaving, but those of the other language come from another story, so that code
switching stays and alignment goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MODES = ("monolingual", "mixed", "alternating", "interleaved", "interleaved-unaligned")
SCHEDULES = ("stage", "run")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class StageSettings:
    """One stage of a recipe.

    Attributes:
        name: of the stage, unique in its recipe.
        mode: "monolingual"; "mixed" (each document in one language, spread evenly); "alternating" (each batch
            in one language, in turns); "interleaved" (each sentence draws its language);
            "interleaved-unaligned" (as interleaved, the other language's sentences from another story).
        parts: budget per language in parts of the recipe's total (monolingual, mixed, alternating), or
            `{"*": parts}` where the draw decides (interleaved).
        completes: the stage's budgets are what each of its languages still lacks to the recipe's
            `language_targets`, so that matched recipes end exactly equal however the interleaving draws fell;
            its parts are then what is expected, not what is read.
    """

    name: str
    mode: str
    parts: dict[str, float]
    completes: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"stage '{self.name}': unknown mode '{self.mode}'; choose one of {MODES}.")
        if not self.parts or min(self.parts.values()) <= 0:
            raise ValueError(f"stage '{self.name}': parts must be positive, got {self.parts}.")
        if ("*" in self.parts) != self.mode.startswith("interleaved"):
            raise ValueError(
                f"stage '{self.name}': mode '{self.mode}' does not go with parts {self.parts}; interleaved "
                "stages take {'*': parts}, all others name their languages."
            )
        if self.mode == "monolingual" and len(self.parts) != 1:
            raise ValueError(
                f"stage '{self.name}': a monolingual stage has one language, got {', '.join(self.parts)}; "
                "for several choose 'mixed' or 'alternating'."
            )
        if self.completes and "*" in self.parts:
            raise ValueError(
                f"stage '{self.name}': an interleaved stage cannot complete per-language targets, since the "
                "draw decides how much of each language it reads."
            )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW as in the paper: betas (0.9, 0.98), weight decay 0.1, clip 1.0, 5% linear warm-up, linear decay.

    Attributes:
        learning_rate: peak.
        weight_decay: of matrices only, not of norms and biases (ours: the paper gives just the number).
        max_grad_norm: gradients are clipped to this norm.
        warmup_share: of a schedule's steps.
        schedule: "stage" warms up and decays within every stage, "run" once over the whole recipe. The paper
            does not say which.
    """

    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    warmup_share: float = 0.05
    schedule: str = "stage"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got '{self.schedule}'.")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share is a share of the steps, 0 to 1, got {self.warmup_share}.")


@dataclass(frozen=True)
class BatchSettings:
    """How documents become batches. Separators, isolation and BOS policy are unknown in the paper.

    Attributes:
        tokens_per_step: sentence tokens of an optimizer step (614,400 in the paper), in one forward.
        max_length: tokens of a packed row (2,048 in the paper).
        packing, isolate, separator: as in `InterleavingDataCollator`, which also checks them.
    """

    tokens_per_step: int = 614_400
    max_length: int = 2048
    packing: str = "best_fit"
    isolate: bool = True
    separator: str = "none"

    def __post_init__(self):
        if self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step must be at least 1, got {self.tokens_per_step}.")


@dataclass(frozen=True)
class ModelSettings:
    """The decoder.

    Attributes:
        text_config: keyword arguments of its config; `model_type` names the architecture. Never changed.
        dtype: of the forward and backward pass on a GPU, "float32" or "bfloat16" (autocast). Weights and
            optimizer state are float32 always, and so is everything on a CPU.
    """

    text_config: dict[str, Any]
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'.")


@dataclass(frozen=True)
class Recipe:
    """Complete settings of one training run.

    Attributes:
        name: of the recipe.
        languages: (first, second) language.
        budget_tokens: tokens of 100 parts: what baseline-en-fr sees. Special tokens and pads do not count.
        stages: in order.
        matched_with: the recipe that this one is held against. Both see the same total; per language they are
            equal where a stage `completes`, and only nearly so where the draw alone decides.
    """

    name: str
    languages: tuple[str, str]
    budget_tokens: int
    stages: tuple[StageSettings, ...]
    model: ModelSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    seed: int = 0
    matched_with: str | None = None

    def __post_init__(self):
        if len(self.languages) != 2 or self.languages[0] == self.languages[1]:
            raise ValueError(f"languages must be two different codes (first, second), got {self.languages}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"recipe '{self.name}' needs stages with different names, got {names}.")
        for stage in self.stages:
            unknown = set(stage.parts) - {"*", *self.languages}
            if unknown:
                raise ValueError(
                    f"stage '{stage.name}' of recipe '{self.name}' has parts for {sorted(unknown)}, but the "
                    f"languages are {' and '.join(self.languages)}."
                )

    def tokens(self, parts: float) -> int:
        """Parts of the budget in tokens."""
        return round(self.budget_tokens * parts / 100)

    def language_targets(self) -> dict[str, int]:
        """Tokens that each language must have seen after a stage that `completes`: 75 and 25 parts."""
        first, second = self.languages
        return {first: self.tokens(75), second: self.tokens(25)}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as saved beside the run."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Recipe:
        """Back from `to_dict`, also after JSON has made lists of the tuples."""
        optimizer = {**settings["optimizer"], "betas": tuple(settings["optimizer"]["betas"])}
        return cls(
            **{
                **settings,
                "languages": tuple(settings["languages"]),
                "stages": tuple(StageSettings(**stage) for stage in settings["stages"]),
                "model": ModelSettings(**settings["model"]),
                "optimizer": OptimizerSettings(**optimizer),
                "batch": BatchSettings(**settings["batch"]),
            }
        )


def _recipe(name, languages, preset, seed, stages, matched_with=None) -> Recipe:
    return Recipe(
        name=name,
        languages=tuple(languages),
        budget_tokens=preset.budget_tokens,
        stages=tuple(stages),
        model=preset.model,
        optimizer=preset.optimizer,
        batch=preset.batch,
        seed=seed,
        matched_with=matched_with,
    )


def baseline_en(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """The first language alone: 75 parts."""
    first = languages[0]
    return _recipe(
        f"baseline-{first}", languages, preset, seed, [StageSettings(first, "monolingual", {first: 75})]
    )


def baseline_fr(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """The second language alone: 25 parts."""
    second = languages[1]
    stages = [StageSettings(second, "monolingual", {second: 25})]
    return _recipe(f"baseline-{second}", languages, preset, seed, stages)


def baseline_en_fr(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """Both languages, every document in one of them: 75 + 25 parts."""
    first, second = languages
    stages = [StageSettings("mixed", "mixed", {first: 75, second: 25})]
    return _recipe(f"baseline-{first}-{second}", languages, preset, seed, stages)


def interleave(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """65 parts of the first language, then 20 interleaved sentence by sentence."""
    first = languages[0]
    stages = [
        StageSettings(first, "monolingual", {first: 65}),
        StageSettings("interleaved", "interleaved", {"*": 20}),
    ]
    return _recipe("interleave", languages, preset, seed, stages)


def interleave_ft(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """50 parts of the first language, 20 interleaved, then batches of either one in turns up to 75 / 25."""
    first, second = languages
    stages = [
        StageSettings(first, "monolingual", {first: 50}),
        StageSettings("interleaved", "interleaved", {"*": 20}),
        StageSettings("fine-tuning", "alternating", {first: 15, second: 15}, completes=True),
    ]
    return _recipe(
        "interleave-ft", languages, preset, seed, stages, matched_with=f"baseline-{first}-{second}"
    )


def interleave_unaligned(preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """The control: `interleave` with the other language's sentences taken from another story."""
    first = languages[0]
    stages = [
        StageSettings(first, "monolingual", {first: 65}),
        StageSettings("interleaved-unaligned", "interleaved-unaligned", {"*": 20}),
    ]
    return _recipe("interleave-unaligned", languages, preset, seed, stages, matched_with="interleave")


#: Every recipe by its name for English and French, in the order of the report.
RECIPES: dict[str, Callable[..., Recipe]] = {
    "baseline-en": baseline_en,
    "baseline-fr": baseline_fr,
    "baseline-en-fr": baseline_en_fr,
    "interleave": interleave,
    "interleave-ft": interleave_ft,
    "interleave-unaligned": interleave_unaligned,
}


@dataclass(frozen=True)
class TrainingPreset:
    """What all recipes of an experiment share: budget, model, optimizer and batches."""

    budget_tokens: int
    model: ModelSettings
    optimizer: OptimizerSettings
    batch: BatchSettings

    def with_(self, **changes: Any) -> TrainingPreset:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def recipe(name: str, preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """The settings of a recipe by name.

    Raises:
        ValueError: no such recipe; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe '{name}'; choose from {', '.join(RECIPES)}.")
    return RECIPES[name](preset, languages, seed)
