"""The paper's training recipes, each a function that returns complete settings; others come from files.

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

A recipe of your own, with any number of languages, is a YAML file of the fields of `Recipe`
(examples/recipes/three_languages.yaml), or a `Recipe` made in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from ..batches.interleave import WHOLE_STORY, Switching, check_weights
from .settings import KEYS, from_plain, nearest

MODES = ("monolingual", "mixed", "alternating", "interleaved", "interleaved-unaligned")
SCHEDULES = ("stage", "run")
DTYPES = ("float32", "bfloat16")
ORDERS = ("global", "shards")


def _any_language(_: Mapping[str, Any]) -> None:
    return None  # `Recipe` checks them


def known_decoder_settings(text_config: Mapping[str, Any]) -> set[str] | None:
    """What the config of a decoder may hold; None where transformers does not know its type."""
    return _names_of_type(text_config.get("model_type", "llama"))


@cache
def _names_of_type(model_type: str) -> set[str] | None:
    from dataclasses import fields

    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if model_type not in CONFIG_MAPPING:
        return None  # ClsiConfig refuses it, with what is to be done
    kind = CONFIG_MAPPING[model_type]
    # What every config has (id2label, ...) says nothing of a decoder, but for these.
    names = {each.name for each in fields(kind)} - {each.name for each in fields(PreTrainedConfig)}
    names |= {"model_type", "tie_word_embeddings"} | set(kind.attribute_map)
    # Before version 5, rope was described by these; the configs still read them.
    return names | {"rope_theta", "rope_scaling", "partial_rotary_factor"}


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
        switching: when an interleaved document changes its language; the default is the paper's, a draw for
            every sentence.
        weights: of the recipe's languages in that draw, in their order; None: equal, as in the paper.
    """

    name: str
    mode: str
    parts: dict[str, float] = field(metadata={KEYS: _any_language})
    completes: bool = False
    switching: Switching = field(default_factory=Switching)
    weights: tuple[float, ...] | None = None

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
        if not self.interleaved and (self.switching != Switching() or self.weights is not None):
            raise ValueError(
                f"stage '{self.name}': switching and weights are about interleaved stages; in mode "
                f"'{self.mode}' every document is in one language."
            )
        if self.weights is not None:
            check_weights(self.weights)

    @property
    def interleaved(self) -> bool:
        """Whether the draw decides how much of each language is read."""
        return self.mode.startswith("interleaved")

    def expected_shares(self, num_languages: int, start: int | None = None) -> list[float]:
        """Share of each language in what an interleaved stage draws, in the long run of its documents.

        With a probability p of switching, a document walks from language i to j with p w_j / (1 - w_i), which
        rests where the shares are as w_i (1 - w_i): equal for two languages, whatever their weights.

        Args:
            start: index of `switching.start`.
        """
        weights = check_weights(num_languages if self.weights is None else self.weights)
        weights = weights / weights.sum()
        stays = self.switching.every == WHOLE_STORY or self.switching.probability == 0
        if stays and start is not None:
            return [float(index == start) for index in range(num_languages)]
        if self.switching.probability and num_languages > 1 and weights.max() < 1:
            weights = weights * (1 - weights)
        return (weights / weights.sum()).tolist()


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
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got '{self.schedule}'.")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share is a share of the steps, 0 to 1, got {self.warmup_share}.")


@dataclass(frozen=True)
class BatchSettings:
    """How documents become batches. Separators, isolation and BOS policy are unknown in the paper.

    Attributes:
        tokens_per_step: sentence tokens of an optimizer step (614,400 in the paper), over all processes.
        max_length: tokens of a packed row (2,048 in the paper).
        packing, isolate, separator, prepend_bos, append_eos: as in `InterleavingDataCollator`, which also
            checks them.
        rows_per_forward: packed rows of one forward on a device, so that a step that does not fit its memory
            is accumulated; None: a process's whole share of the step at once.
    """

    tokens_per_step: int = 614_400
    max_length: int = 2048
    packing: str = "best_fit"
    isolate: bool = True
    separator: str = "none"
    prepend_bos: bool = True
    append_eos: bool = True
    rows_per_forward: int | None = None

    def __post_init__(self):
        for name in ("tokens_per_step", "max_length", "rows_per_forward"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


@dataclass(frozen=True)
class DataSettings:
    """In which order the stories are read.

    Attributes:
        order: "global" permutes all stories anew in every epoch (they must be at hand: in memory or
            memory-mapped); "shards" streams them shard by shard, in blocks that are permuted.
        lanes: of "shards": streams that are read side by side, dealt to the processes; a multiple of theirs.
            Equal lanes give equal batches, whatever the number of processes.
        block_stories: of "shards": stories that are permuted together.
    """

    order: str = "global"
    lanes: int = 1
    block_stories: int = 4096

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got '{self.order}'.")
        for name in ("lanes", "block_stories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class ModelSettings:
    """The decoder.

    Attributes:
        text_config: keyword arguments of its config; `model_type` names the architecture. Never changed.
        initialize_from: Hub id or folder of a text model whose body the decoder takes over
            (training/initialize.py); its own config then holds. None: random weights.
        dtype: of the forward and backward pass on a GPU, "float32" or "bfloat16" (autocast). Weights and
            optimizer state are float32 always, and so is everything on a CPU.
    """

    text_config: dict[str, Any] = field(metadata={KEYS: known_decoder_settings})
    dtype: str = "float32"
    initialize_from: str | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'.")


@dataclass(frozen=True)
class Recipe:
    """Complete settings of one training run.

    Attributes:
        name: of the recipe.
        languages: one or more codes; the paper's recipes have (first, second).
        budget_tokens: tokens of 100 parts: what baseline-en-fr sees. Special tokens and pads do not count.
        stages: in order.
        targets: parts of the budget that each language has seen after a stage that `completes`. None, with
            two languages: the paper's 75 and 25.
        matched_with: the recipe that this one is held against. Both see the same total; per language they are
            equal where a stage `completes`, and only nearly so where the draw alone decides.
    """

    name: str
    languages: tuple[str, ...]
    budget_tokens: int
    stages: tuple[StageSettings, ...]
    model: ModelSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    data: DataSettings = field(default_factory=DataSettings)
    seed: int = 0
    targets: dict[str, float] | None = field(default=None, metadata={KEYS: _any_language})
    matched_with: str | None = None

    def __post_init__(self):
        if not self.languages or len(set(self.languages)) != len(self.languages) or "*" in self.languages:
            raise ValueError(f"languages must be different codes, at least one, got {self.languages}.")
        if self.budget_tokens < 1:
            raise ValueError(f"budget_tokens must be at least 1, got {self.budget_tokens}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"recipe '{self.name}' needs stages with different names, got {names}.")
        for stage in self.stages:
            self._check_stage(stage)
        if self.targets is not None:
            self._check_languages(self.targets, "it has targets for")
            if min(self.targets.values(), default=0) < 0:
                raise ValueError(f"recipe '{self.name}': targets must not be negative, got {self.targets}.")

    def _check_stage(self, stage: StageSettings) -> None:
        where = f"stage '{stage.name}'"
        self._check_languages(set(stage.parts) - {"*"}, f"{where} has parts for")
        if stage.weights is not None and len(stage.weights) != len(self.languages):
            raise ValueError(
                f"{where} of recipe '{self.name}' has {len(stage.weights)} weights for the "
                f"{len(self.languages)} languages {', '.join(self.languages)}; give one each, or none."
            )
        if stage.switching.start is not None:
            self._check_languages([stage.switching.start], f"{where} starts with")
        if stage.completes:
            if self.targets is None and len(self.languages) != 2:
                raise ValueError(
                    f"{where} of recipe '{self.name}' completes targets that the recipe does not have; with "
                    f"{len(self.languages)} languages, give targets: parts of the budget for each."
                )
            lacking = set(stage.parts) - set(self.languages if self.targets is None else self.targets)
            if lacking:
                raise ValueError(
                    f"{where} of recipe '{self.name}' completes {', '.join(sorted(lacking))}, for which the "
                    "recipe has no targets."
                )

    def _check_languages(self, codes: Iterable[str], has: str) -> None:
        unknown = set(codes) - set(self.languages)
        if unknown:
            raise ValueError(
                f"recipe '{self.name}': {has} {sorted(unknown)}, but the languages are "
                f"{' and '.join(self.languages)}."
            )

    def tokens(self, parts: float) -> int:
        """Parts of the budget in tokens."""
        return round(self.budget_tokens * parts / 100)

    def language_targets(self) -> dict[str, int]:
        """Tokens that each language must have seen after a stage that `completes`."""
        if self.targets is not None:
            return {code: self.tokens(parts) for code, parts in self.targets.items()}
        if len(self.languages) != 2:
            raise ValueError(f"recipe '{self.name}' has no targets; give them as parts of each language.")
        first, second = self.languages
        return {first: self.tokens(75), second: self.tokens(25)}

    def expected_tokens(self) -> dict[str, dict[str, int]]:
        """Tokens by stage and language before anything is drawn: with plain units, units.

        An interleaved stage is expected to read its languages as `StageSettings.expected_shares` has them, as
        if sentences were as long in every language. All other numbers are exact.

        >>> from .sizes import SIZES
        >>> recipe("interleave", SIZES["1b"]).expected_tokens()["interleaved"]
        {'en': 6144000000, 'fr': 6144000000}
        """
        expected: dict[str, dict[str, int]] = {}
        seen = dict.fromkeys(self.languages, 0)
        for stage in self.stages:
            if stage.interleaved:
                tokens = self._divided(stage)
            elif stage.completes:
                targets = self.language_targets()
                tokens = {code: max(0, targets[code] - seen[code]) for code in stage.parts}
            else:
                tokens = {code: self.tokens(parts) for code, parts in stage.parts.items()}
            expected[stage.name] = {code: tokens.get(code, 0) for code in self.languages}
            seen = {code: seen[code] + tokens.get(code, 0) for code in self.languages}
        return expected

    def _divided(self, stage: StageSettings) -> dict[str, int]:
        """The tokens of an interleaved stage among the languages, in whole tokens."""
        start = stage.switching.start
        shares = stage.expected_shares(
            len(self.languages), None if start is None else self.languages.index(start)
        )
        total = self.tokens(stage.parts["*"])
        marks = [round(total * sum(shares[:index])) for index in range(len(shares))] + [total]
        return {code: marks[i + 1] - marks[i] for i, code in enumerate(self.languages)}

    def expected_steps(self) -> dict[str, int]:
        """Optimizer steps of every stage, as `plan_stage` makes them of the expected tokens."""
        size = self.batch.tokens_per_step
        steps = {}
        for stage in self.stages:
            tokens = self.expected_tokens()[stage.name]
            if stage.mode == "alternating":  # every language has its own batches
                steps[stage.name] = sum(max(1, round(tokens[code] / size)) for code in stage.parts)
            else:
                steps[stage.name] = max(1, round(sum(tokens.values()) / size))
        return steps

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as saved beside the run."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Recipe:
        """Back from `to_dict`, also after JSON has made lists of the tuples, or from a file of one's own.

        Fields that have defaults may be missing, so that files of earlier versions are read.

        Raises:
            ValueError: an unknown or a missing setting, one of another type, or one that makes no sense.
        """
        return from_plain(cls, settings)


def _pair(name: str, languages: Iterable[str]) -> tuple[str, ...]:
    pair = tuple(languages)
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(
            f"languages of recipe '{name}' must be two different codes (first, second), got {pair}. For more "
            "or fewer, describe a recipe of your own (examples/recipes/three_languages.yaml)."
        )
    return pair


def _recipe(name, languages, preset, seed, stages, matched_with=None) -> Recipe:
    return Recipe(
        name=name,
        languages=_pair(name, languages),
        budget_tokens=preset.budget_tokens,
        stages=tuple(stages),
        model=preset.model,
        optimizer=preset.optimizer,
        batch=preset.batch,
        data=preset.data,
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
    """What all recipes of an experiment share: budget, model, optimizer, batches and order of the data."""

    budget_tokens: int
    model: ModelSettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    data: DataSettings = field(default_factory=DataSettings)

    def with_(self, **changes: Any) -> TrainingPreset:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def recipe(name: str, preset: TrainingPreset, languages=("en", "fr"), seed: int = 0) -> Recipe:
    """The settings of a recipe by name.

    Raises:
        ValueError: no such recipe; the message lists them.
    """
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe '{name}'; choose from {', '.join(RECIPES)}.{nearest(name, RECIPES)}"
        )
    return RECIPES[name](preset, languages, seed)
