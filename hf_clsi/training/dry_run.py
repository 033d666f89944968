"""A recipe becomes a plan that people read before training: stages, units, epochs, GPU-hours, memory, disk.

Nothing is read but the recipe and the sizes of the corpora. Steps and totals are exact; how an interleaved
stage divides among the languages is what its draw is expected to give (`plan_stage` knows the exact numbers,
at the cost of a pass over the data); hours are those of the training steps alone, at a stated speed.

The tables of docs/scale.md are made here: `python -m hf_clsi.training.dry_run docs/scale.md` writes them
anew, and a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_clsi import SIZES as CONFIGS
from . import cost
from .budget import StoryLengths
from .cost import Gpu, ModelShape
from .recipes import RECIPES, Recipe, StageSettings, TrainingPreset

GB = 1e9  # of files and memory in what is printed
LOG_BYTES = 250  # of one entry of the loss curve, as JSON: an estimate
INTERLEAVED = "*"


@dataclass(frozen=True)
class CorpusSize:
    """How much there is of one language, each sentence once.

    Attributes:
        tokens: as the model reads them; with plain units, units.
        units: raw units, before runs were collapsed and pairs merged; None: the same as tokens.
        aligned_tokens: in stories that all languages have, which interleaved stages read; None: all.
        documents: number of stories; None: not known. Gives the mean length of a document.
    """

    tokens: int
    units: int | None = None
    aligned_tokens: int | None = None
    documents: int | None = None

    def __post_init__(self):
        for name in ("tokens", "units", "documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"a corpus has at least 1 of its {name}, got {value}.")
        if self.aligned_tokens is not None and not 0 <= self.aligned_tokens <= self.tokens:
            raise ValueError(
                f"aligned_tokens are a part of the corpus' {self.tokens} tokens, got {self.aligned_tokens}."
            )

    @property
    def aligned(self) -> int:
        return self.tokens if self.aligned_tokens is None else self.aligned_tokens

    @property
    def raw(self) -> int:
        return self.tokens if self.units is None else self.units


#: What the paper trained on, by its own figures (arXiv 2512.01865), 12.5 units a second: EN 76k h (LibriHeavy
#: 56k, spoken TinyStories 20k), FR 21k h (TinyStories), and 42k h of both sides of TinyStories for
#: interleaving.
PAPER_CORPORA: dict[str, CorpusSize] = {
    "en": CorpusSize(3_420_000_000, aligned_tokens=945_000_000),
    "fr": CorpusSize(945_000_000),
}


def corpora_of(
    lengths: StoryLengths | Mapping[str, tuple[StoryLengths, np.ndarray]],
    units: Mapping[str, int] | None = None,
) -> dict[str, CorpusSize]:
    """The corpora of stories at hand.

    Args:
        lengths: of all stories; or, where stories lack languages, (lengths, places) for every language and,
            under "*", for the stories that have all, as `plan_stage` takes them.
        units: language -> raw units, where tokens are merged.
    """
    if isinstance(lengths, StoryLengths):
        readings = dict.fromkeys(lengths.tokens, lengths)
    else:
        readings = {code: each[0] for code, each in lengths.items()}
    aligned = readings.pop(INTERLEAVED, None)
    return {
        code: CorpusSize(
            tokens=int(reading.tokens[code].sum()),
            units=None if units is None else units[code],
            aligned_tokens=None if aligned is None else int(aligned.tokens[code].sum()),
            documents=len(reading),
        )
        for code, reading in readings.items()
    }


@dataclass(frozen=True)
class StageDryRun:
    """A stage of a plan.

    Attributes:
        tokens, units, hours, epochs: by language; raw units, hours of speech and epochs None where not known.
        passes: how often an interleaved stage reads the aligned stories.
        warmup_steps: in this stage; 0 where the schedule is the run's and has warmed up before.
    """

    name: str
    mode: str
    steps: int
    tokens: dict[str, float]
    units: dict[str, float | None]
    hours: dict[str, float | None]
    epochs: dict[str, float | None]
    passes: float | None
    warmup_steps: int
    gpu_hours: float


@dataclass(frozen=True)
class DryRun:
    """A recipe's plan; `describe` prints it.

    Attributes:
        corpora_are_the_papers: no data were given, so epochs are over what the paper trained on.
        tokens, units, hours, epochs: of all stages, by language.
        matched: share of what `matched_with` sees, under "total" and by language; None: nothing to match.
        flops_per_token, attention_flops_per_token: see training/cost.py.
        units_per_second: of one GPU. mfu: what that is of its peak. stated: which of the two was given.
        step_seconds: of an optimizer step on all GPUs.
        rows_per_gpu, rows_per_forward, forwards: packed rows of a step, if rows were full.
        memory: name of the way -> `TrainingMemory`, total and whether it fits, in bytes.
        disk: bytes.
    """

    recipe: str
    languages: tuple[str, ...]
    corpora: dict[str, CorpusSize] | None
    corpora_are_the_papers: bool
    stages: tuple[StageDryRun, ...]
    steps: int
    tokens_per_step: int
    tokens: dict[str, float]
    units: dict[str, float | None]
    hours: dict[str, float | None]
    epochs: dict[str, float | None]
    matched_with: str | None
    matched: dict[str, float] | None
    schedule: dict[str, Any]
    model: dict[str, Any]
    context: float
    flops_per_token: float
    attention_flops_per_token: float
    gpu: str
    gpus: int
    mfu: float
    units_per_second: float
    stated: str
    gpu_hours: float
    step_seconds: float
    rows_per_gpu: int
    rows_per_forward: int
    forwards: int
    memory: dict[str, dict[str, Any]]
    disk: dict[str, Any]

    @property
    def total_tokens(self) -> float:
        return sum(self.tokens.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {**asdict(self), "languages": list(self.languages), "stages": [asdict(s) for s in self.stages]}


def plan_of(
    recipe: Recipe,
    corpora: Mapping[str, CorpusSize] | None = None,
    *,
    gpus: int = 1,
    gpu: str | Gpu = "h200",
    mfu: float = 0.4,
    units_per_second: float | None = None,
    frame_rate_hz: float = 12.5,
    num_units: int = 2048,
    num_merges: int = 0,
    save_steps: int | None = None,
    keep: int = 2,
    logging_steps: int = 10,
) -> DryRun:
    """What a recipe will do.

    Args:
        recipe: complete settings.
        corpora: language -> size (`corpora_of`). None: those of the paper if the model is one of its two and
            the languages are its, else epochs are left out.
        gpus: devices, each with its own process.
        gpu: their kind, a name in `cost.GPUS`.
        mfu: share of its peak that training reaches, if nothing was measured.
        units_per_second: of ONE GPU, measured (benchmarks/train.py); replaces `mfu`. Tokens where the model
            reads merges and the corpora do not say how many units they are.
        frame_rate_hz: raw units a second of speech.
        num_units, num_merges: the vocabulary.
        save_steps: between two checkpoints; None: after every stage.
        keep: checkpoints that are kept; while the next one is written, one more lies on the disk.
        logging_steps: steps between two entries of the loss curve.

    Raises:
        ValueError: a language without a corpus, a speed or a number that makes no sense.
    """
    if gpus < 1 or keep < 1:
        raise ValueError(f"gpus and keep must be at least 1, got {gpus} and {keep}.")
    papers = corpora is None and is_papers(recipe)
    corpora = dict(PAPER_CORPORA) if papers else corpora
    _check_corpora(recipe, corpora)
    device = cost.gpu(gpu)
    shape = cost.model_shape(recipe.model.text_config, num_units, num_merges)
    expected = _expected_tokens(recipe, corpora)
    total_tokens = _sum(expected)
    ratio = _units_per_token(recipe, corpora, num_merges)

    context = cost.mean_context(recipe.batch.max_length, _document_length(recipe, corpora))
    flops = cost.training_flops_per_token(shape, context)
    total_units = _times(total_tokens, ratio)
    per_token = 1.0 if ratio is None else sum(total_units.values()) / sum(total_tokens.values())
    if units_per_second is None:
        stated, speed = "mfu", cost.tokens_per_second(flops, device, mfu)
    else:
        if units_per_second <= 0:
            raise ValueError(f"units_per_second must be positive, got {units_per_second}.")
        stated, speed = "units_per_second", units_per_second / per_token
        mfu = cost.mfu(speed, flops, device)

    steps = [
        _steps(stage, tokens, recipe.batch.tokens_per_step)
        for stage, tokens in zip(recipe.stages, expected, strict=True)
    ]
    warmup = _warmup_steps(recipe, steps)
    stages = tuple(
        StageDryRun(
            name=stage.name,
            mode=stage.mode,
            steps=steps[index],
            tokens=expected[index],
            units=_times(expected[index], ratio),
            hours=_hours_of_speech(_times(expected[index], ratio), frame_rate_hz),
            epochs=_epochs(expected[index], corpora, aligned=stage.interleaved),
            passes=_passes(stage, expected[index], recipe, corpora),
            warmup_steps=warmup[index],
            gpu_hours=sum(expected[index].values()) / speed / 3600,
        )
        for index, stage in enumerate(recipe.stages)
    )
    rows_per_gpu = math.ceil(recipe.batch.tokens_per_step / recipe.batch.max_length / gpus)
    rows = min(recipe.batch.rows_per_forward or rows_per_gpu, rows_per_gpu)
    return DryRun(
        recipe=recipe.name,
        languages=recipe.languages,
        corpora=None if corpora is None else {code: corpora[code] for code in recipe.languages},
        corpora_are_the_papers=papers,
        stages=stages,
        steps=sum(steps),
        tokens_per_step=recipe.batch.tokens_per_step,
        tokens=total_tokens,
        units=total_units,
        hours=_hours_of_speech(total_units, frame_rate_hz),
        epochs=_epochs(total_tokens, corpora),
        matched_with=recipe.matched_with,
        matched=_matched(recipe, corpora, total_tokens),
        schedule={
            "per": recipe.optimizer.schedule,
            "learning_rate": recipe.optimizer.learning_rate,
            "warmup_share": recipe.optimizer.warmup_share,
            "decay": "linear, to zero",
        },
        model={
            **asdict(shape),
            "body_parameters": shape.body_parameters,
            "initialize_from": recipe.model.initialize_from,
        },
        context=context,
        flops_per_token=flops,
        attention_flops_per_token=cost.attention_flops_per_token(shape, context),
        gpu=device.name,
        gpus=gpus,
        mfu=mfu,
        units_per_second=speed * per_token,
        stated=stated,
        gpu_hours=sum(stage.gpu_hours for stage in stages),
        step_seconds=recipe.batch.tokens_per_step / speed / gpus,
        rows_per_gpu=rows_per_gpu,
        rows_per_forward=rows,
        forwards=math.ceil(rows_per_gpu / rows),
        memory=_memory(recipe, shape, device, gpus, rows),
        disk=_disk(shape, sum(steps), len(stages), corpora, save_steps, keep, logging_steps),
    )


def is_papers(recipe: Recipe) -> bool:
    """Whether a recipe is about one of the paper's two models and its languages."""
    shapes = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size")
    own = tuple(recipe.model.text_config.get(name) for name in shapes)
    papers = [tuple(CONFIGS[size]["text_config"][name] for name in shapes) for size in ("360m", "1b")]
    return own in papers and set(recipe.languages) <= set(PAPER_CORPORA)


def _check_corpora(recipe: Recipe, corpora: Mapping[str, CorpusSize] | None) -> None:
    lacking = [] if corpora is None else [code for code in recipe.languages if code not in corpora]
    if lacking:
        raise ValueError(
            f"recipe '{recipe.name}' reads {', '.join(recipe.languages)}, but there is no corpus in "
            f"{', '.join(lacking)}; those given are {', '.join(corpora) or 'none'}."
        )
    if corpora is not None and any(stage.interleaved for stage in recipe.stages):
        for code in recipe.languages:
            if not corpora[code].aligned:
                raise ValueError(
                    f"recipe '{recipe.name}' has an interleaved stage, but no story exists in all of its "
                    f"languages: {code} has no aligned tokens."
                )


def _units_per_token(
    recipe: Recipe, corpora: Mapping[str, CorpusSize] | None, num_merges: int
) -> dict[str, float] | None:
    """Raw units in a token; None where tokens are merges and nobody has counted."""
    if num_merges and (corpora is None or any(corpora[code].units is None for code in recipe.languages)):
        return None
    return {code: corpora[code].raw / corpora[code].tokens if corpora else 1.0 for code in recipe.languages}


def _times(tokens: Mapping[str, float], ratio: Mapping[str, float] | None) -> dict[str, float | None]:
    return {code: None if ratio is None else n * ratio[code] for code, n in tokens.items()}


def _hours_of_speech(units: Mapping[str, float | None], frame_rate_hz: float) -> dict[str, float | None]:
    return {code: None if n is None else n / frame_rate_hz / 3600 for code, n in units.items()}


def _expected_tokens(recipe: Recipe, corpora: Mapping[str, CorpusSize] | None) -> list[dict[str, float]]:
    """Tokens by stage and language. Like `Recipe.expected_tokens`, but for how long the sentences are."""
    seen = dict.fromkeys(recipe.languages, 0)
    expected = []
    for stage in recipe.stages:
        if stage.interleaved:
            shares = _token_shares(stage, recipe, corpora)
            total = recipe.tokens(stage.parts[INTERLEAVED])
            tokens = {code: total * shares[code] for code in recipe.languages}
        elif stage.completes:
            targets = recipe.language_targets()
            tokens = {code: max(0, targets[code] - seen[code]) for code in stage.parts}
        else:
            tokens = {code: recipe.tokens(parts) for code, parts in stage.parts.items()}
        expected.append({code: tokens.get(code, 0) for code in recipe.languages})
        seen = _sum([seen, expected[-1]])
    return expected


def _token_shares(
    stage: StageSettings, recipe: Recipe, corpora: Mapping[str, CorpusSize] | None
) -> dict[str, float]:
    """Of an interleaved stage: its sentences in each language, by the draw, times how long they are there."""
    start = stage.switching.start
    index = None if start is None else recipe.languages.index(start)
    drawn = stage.expected_shares(len(recipe.languages), index)
    weights = {
        code: share * (corpora[code].aligned if corpora else 1)
        for code, share in zip(recipe.languages, drawn, strict=True)
    }
    return {code: weight / sum(weights.values()) for code, weight in weights.items()}


def _steps(stage: StageSettings, tokens: Mapping[str, float], tokens_per_step: int) -> int:
    """As `plan_stage` makes them."""
    if stage.mode == "alternating":  # every language has its own batches
        return sum(max(1, round(tokens[code] / tokens_per_step)) for code in stage.parts)
    return max(1, round(sum(tokens.values()) / tokens_per_step))


def _warmup_steps(recipe: Recipe, steps: Sequence[int]) -> list[int]:
    share = recipe.optimizer.warmup_share
    if recipe.optimizer.schedule == "stage":
        return [max(1, round(n * share)) for n in steps]
    left = max(1, round(sum(steps) * share))
    warmup = []
    for n in steps:
        warmup.append(min(n, left))
        left -= warmup[-1]
    return warmup


def _epochs(
    tokens: Mapping[str, float], corpora: Mapping[str, CorpusSize] | None, aligned: bool = False
) -> dict[str, float | None]:
    if corpora is None:
        return dict.fromkeys(tokens)
    return {
        code: n / (corpora[code].aligned if aligned else corpora[code].tokens) for code, n in tokens.items()
    }


def _passes(stage, tokens, recipe: Recipe, corpora: Mapping[str, CorpusSize] | None) -> float | None:
    """How often the aligned stories are read: in one pass, each sentence in one of its languages."""
    if corpora is None or not stage.interleaved:
        return None
    start = stage.switching.start
    drawn = stage.expected_shares(
        len(recipe.languages), None if start is None else recipe.languages.index(start)
    )
    one = sum(share * corpora[code].aligned for share, code in zip(drawn, recipe.languages, strict=True))
    return sum(tokens.values()) / one


def _document_length(recipe: Recipe, corpora: Mapping[str, CorpusSize] | None) -> float | None:
    """Mean tokens of an isolated document; None where it fills a row, or is not known."""
    if not recipe.batch.isolate or corpora is None:
        return None
    read = [corpora[code] for code in recipe.languages]
    if any(each.documents is None for each in read):
        return None
    return sum(each.tokens for each in read) / sum(each.documents for each in read)


def _matched(
    recipe: Recipe, corpora: Mapping[str, CorpusSize] | None, tokens: Mapping[str, float]
) -> dict[str, float] | None:
    if recipe.matched_with is None or len(recipe.languages) != 2:
        return None
    preset = TrainingPreset(recipe.budget_tokens, recipe.model, recipe.optimizer, recipe.batch)
    others = {other.name: other for other in (make(preset, recipe.languages) for make in RECIPES.values())}
    if recipe.matched_with not in others:
        return None
    other = _sum(_expected_tokens(others[recipe.matched_with], corpora))
    shares = {code: tokens[code] / other[code] for code in recipe.languages if other[code]}
    return {"total": sum(tokens.values()) / sum(other.values()), **shares}


def _memory(
    recipe: Recipe, shape: ModelShape, device: Gpu, gpus: int, rows: int
) -> dict[str, dict[str, Any]]:
    ways: dict[str, dict[str, Any]] = {}
    for strategy in cost.STRATEGIES if gpus > 1 else ("ddp",):
        for checkpointing in (False, True):
            memory = cost.memory_per_gpu(
                shape,
                rows * recipe.batch.max_length,
                recipe.batch.max_length,
                gpus=gpus,
                strategy=strategy,
                dtype=recipe.model.dtype,
                checkpointing=checkpointing,
            )
            name = ("one GPU" if gpus == 1 else strategy) + (", checkpointing" if checkpointing else "")
            ways[name] = {**asdict(memory), "total": memory.total, "fits": memory.total < device.memory}
    return ways


def _disk(shape, steps, stages, corpora, save_steps, keep, logging_steps) -> dict[str, Any]:
    if (save_steps is not None and save_steps < 1) or logging_steps < 1:
        raise ValueError(
            f"save_steps and logging_steps must be at least 1, got {save_steps}, {logging_steps}."
        )
    written = stages if save_steps is None else max(1, steps // save_steps)
    kept = min(keep, written)
    checkpoint = cost.checkpoint_bytes(shape)
    sizes = {
        "checkpoint": checkpoint,
        "checkpoints_written": written,
        "checkpoints_kept": kept,
        "checkpoints_at_most": min(keep + 1, written) * checkpoint,
        "final_model": cost.model_bytes(shape),
        "data": None if corpora is None else cost.data_bytes(sum(each.raw for each in corpora.values())),
        "logs": math.ceil(steps / logging_steps) * LOG_BYTES,
    }
    parts = ("checkpoints_at_most", "final_model", "data", "logs")
    return {**sizes, "total_at_most": sum(sizes[part] or 0 for part in parts)}


def _sum(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {code: sum(each[code] for each in counts) for code in counts[0]}


# -- for people ----------------------------------------------------------------------------------------------


def describe(plan: DryRun) -> str:
    """A plan as an aligned table and some lines.

    >>> from hf_clsi.training.recipes import recipe
    >>> from hf_clsi.training.sizes import size
    >>> print(describe(plan_of(recipe("interleave-ft", size("360m")), gpus=4)).splitlines()[0])
    interleave-ft (en, fr): 61.44 B units in 100,000 steps of 614,400
    """
    word = "units" if plan.units == plan.tokens else "tokens"
    lines = [
        f"{plan.recipe} ({', '.join(plan.languages)}): {_big(plan.total_tokens)} {word} in "
        f"{plan.steps:,} steps of {plan.tokens_per_step:,}",
        "",
        *_aligned(_stage_rows(plan, word)),
        "",
    ]
    facts = [("corpora", _corpora_line(plan))]
    if plan.matched is not None:
        shares = ", ".join(f"{name} {share:.2%}" for name, share in plan.matched.items())
        facts.append((f"against {plan.matched_with}", f"{shares} of its {word}"))
    facts += [
        ("schedule", _schedule_line(plan)),
        ("model", _model_line(plan)),
        ("speed", _speed_line(plan)),
        ("step", _step_line(plan)),
        *_memory_lines(plan),
        ("disk", _disk_line(plan)),
    ]
    return "\n".join(lines + _aligned(facts))


def _stage_rows(plan: DryRun, word: str) -> list[tuple[str, ...]]:
    codes = plan.languages
    head = ["stage", "mode", "steps", *(f"{code} {word}" for code in codes)]
    head += [f"{code} hours" for code in codes] + [f"{code} epochs" for code in codes]
    rows = [(*head, "warm-up", f"{plan.gpu} hours")]
    for stage in plan.stages:
        rows.append(
            (
                stage.name,
                stage.mode,
                f"{stage.steps:,}",
                *_columns(stage, codes),
                f"{stage.warmup_steps:,}",
                _hours(stage.gpu_hours),
            )
        )
    rows.append(("total", "", f"{plan.steps:,}", *_columns(plan, codes), "", _hours(plan.gpu_hours)))
    return rows


def _columns(counts: DryRun | StageDryRun, codes: Sequence[str]) -> list[str]:
    return [
        *(_big(counts.tokens[code]) for code in codes),
        *("-" if counts.hours[code] is None else _hours(counts.hours[code]) for code in codes),
        *("-" if counts.epochs[code] is None else f"{counts.epochs[code]:.2f}" for code in codes),
    ]


def _corpora_line(plan: DryRun) -> str:
    if plan.corpora is None:
        return "not known, hence no epochs; name the data"
    sizes = ", ".join(
        f"{code} {_exact(size.tokens)}"
        + (
            f" ({_exact(size.aligned)} aligned)"
            if _reads_aligned(plan) and size.aligned < size.tokens
            else ""
        )
        for code, size in plan.corpora.items()
    )
    passes = [f"{stage.passes:.1f} times" for stage in plan.stages if stage.passes is not None]
    read = f"; aligned stories are read {', '.join(passes)}, interleaved" if passes else ""
    return sizes + read + ("; THE PAPER'S figures, not data of yours" if plan.corpora_are_the_papers else "")


def _reads_aligned(plan: DryRun) -> bool:
    return any(stage.passes is not None for stage in plan.stages)


def _schedule_line(plan: DryRun) -> str:
    rate, per = plan.schedule["learning_rate"], plan.schedule["per"]
    over = "in every stage anew" if per == "stage" else "once over the whole run"
    return f"to {rate:g} over {plan.schedule['warmup_share']:.0%} of the steps, then linearly to zero, {over}"


def _model_line(plan: DryRun) -> str:
    size, body = plan.model["parameters"], plan.model["body_parameters"]
    whence = f", from {plan.model['initialize_from']}" if plan.model["initialize_from"] else ""
    return f"{plan.model['model_type']}, {_big(size)} parameters ({_big(body)} without embeddings){whence}"


def _speed_line(plan: DryRun) -> str:
    word = "tokens" if None in plan.units.values() else "units"
    rest = plan.flops_per_token - plan.attention_flops_per_token
    speed = f"{plan.units_per_second:,.0f} {word}/s a GPU"
    share = f"{plan.mfu:.0%} MFU" if plan.mfu >= 0.005 else f"{plan.mfu:.1e} MFU"
    given = f"{share} (given) is {speed}" if plan.stated == "mfu" else f"{speed} (given) is {share}"
    terms = f"6N {rest / 1e9:.3g}, attention to {plan.context:,.0f} tokens "
    terms += f"{plan.attention_flops_per_token / 1e9:.2g}"
    hours = (
        f"{_hours(plan.gpu_hours)} {plan.gpu}-hours = {_hours(plan.gpu_hours / plan.gpus)} h on {plan.gpus}"
    )
    return f"{plan.flops_per_token / 1e9:.3g} GFLOP a token ({terms}); {given}; {hours}"


def _step_line(plan: DryRun) -> str:
    return (
        f"{plan.step_seconds:.3g} s; {plan.rows_per_gpu} rows a GPU, {plan.rows_per_forward} a forward: "
        f"{plan.forwards} forward{'s' if plan.forwards > 1 else ''} and backward"
    )


def _memory_lines(plan: DryRun) -> list[tuple[str, str]]:
    lines = []
    for name, memory in plan.memory.items():
        state = memory["weights"] + memory["gradients"] + memory["optimizer"]
        lines.append(
            (
                f"memory, {name}",
                f"{_bytes(state)} weights, gradients, AdamW + {_bytes(memory['working'])} working + "
                f"{_bytes(memory['activations'])} activations (estimates): {_bytes(memory['total'])}, "
                f"{'fits' if memory['fits'] else 'DOES NOT FIT'}",
            )
        )
    return lines


def _disk_line(plan: DryRun) -> str:
    disk = plan.disk
    data = "" if disk["data"] is None else f", data {_bytes(disk['data'])}"
    return (
        f"at most {_bytes(disk['total_at_most'])}: checkpoints of {_bytes(disk['checkpoint'])} "
        f"({disk['checkpoints_written']} written, {disk['checkpoints_kept']} kept, one more while it is "
        f"written), model {_bytes(disk['final_model'])}{data}, logs {_bytes(disk['logs'])}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width; the first two to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 2
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _big(number: float) -> str:
    """61_440_000_000 -> "61.44 B"; two decimals of billions, as the paper prints them."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if abs(number) >= size * 0.1:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f}"


def _exact(number: float) -> str:
    return f"{number / 1e9:,.3f} B" if number >= 1e8 else _big(number)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:,.1f}" if hours >= 1 or not hours else f"{hours:.2g}"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


# -- docs/scale.md -------------------------------------------------------------------------------------------

PAPER_RECIPES = ("baseline-en", "baseline-fr", "baseline-en-fr", "interleave", "interleave-ft")
PAPER_SIZES = ("360m", "1b")


def scale_tables() -> dict[str, str]:
    """Name -> Markdown table, as they stand in docs/scale.md."""
    return {
        "units": _units_table(),
        "hours": _hours_table(),
        "memory": _memory_table(),
        "disk": _disk_table(),
    }


def _papers_plan(name: str, size_name: str, **options: Any) -> DryRun:
    from .recipes import recipe
    from .sizes import size

    return plan_of(recipe(name, size(size_name)), **options)


def _units_table() -> str:
    rows = [("recipe", "steps by stage", "units, B", "of which FR, B", "EN epochs", "FR epochs")]
    for name in PAPER_RECIPES:
        plan = _papers_plan(name, "360m")
        steps = " + ".join(f"{stage.steps:,} {stage.name}" for stage in plan.stages)
        epochs = [f"{plan.epochs[code]:.1f}" if plan.tokens[code] else "-" for code in plan.languages]
        totals = f"{plan.total_tokens / 1e9:.2f}", f"{plan.tokens['fr'] / 1e9:.2f}"
        rows.append((name, steps, *totals, *epochs))
    return _markdown(rows)


def _hours_table() -> str:
    ways = [(size, mfu) for size in PAPER_SIZES for mfu in (0.4, 0.55)]
    rows = [("recipe", "360m EFLOP", "1b EFLOP", *(f"{size}, {mfu:.0%}" for size, mfu in ways))]
    totals = [0.0] * len(ways)
    for name in PAPER_RECIPES:
        plans = [_papers_plan(name, size, mfu=mfu) for size, mfu in ways]
        flops = [f"{plans[i].flops_per_token * plans[i].total_tokens / 1e18:.1f}" for i in (0, 2)]
        rows.append((name, *flops, *(f"{plan.gpu_hours:.0f}" for plan in plans)))
        totals = [total + plan.gpu_hours for total, plan in zip(totals, plans, strict=True)]
    rows.append(("all five", "", "", *(f"{total:.0f}" for total in totals)))
    return _markdown(rows)


def _memory_table() -> str:
    rows = [
        (
            "",
            "weights, gradients, AdamW",
            "working",
            "activations of 8 rows",
            "with checkpointing",
            "sum (with)",
        )
    ]
    for size_name in PAPER_SIZES:
        for gpus in (4, 16):
            plan = _papers_plan("interleave-ft", size_name, gpus=gpus)
            for way in ("ddp", "fsdp2"):
                if way == "ddp" and gpus != 4:
                    continue  # every GPU holds everything, however many there are
                plain, less = plan.memory[way], plan.memory[f"{way}, checkpointing"]
                state = plain["weights"] + plain["gradients"] + plain["optimizer"]
                figures = state, plain["working"], plain["activations"], less["activations"]
                total = f"{plain['total'] / GB:.1f} ({less['total'] / GB:.1f})"
                label = f"{size_name}, {'DDP' if way == 'ddp' else f'FSDP2 on {gpus}'}"
                rows.append((label, *(f"{each / GB:.1f}" for each in figures), total))
    return _markdown(rows)


def _disk_table() -> str:
    rows = [("", *PAPER_SIZES)]
    disks = [
        _papers_plan("interleave-ft", size_name, save_steps=1000, keep=2).disk for size_name in PAPER_SIZES
    ]
    for label, key in (
        ("one checkpoint: weights and two moments, float32", "checkpoint"),
        ("two kept, and the one being written", "checkpoints_at_most"),
        ("final model, float32", "final_model"),
        ("units of the paper's corpora, uint16", "data"),
        ("loss curve, an entry every 10 steps (estimate)", "logs"),
        ("sum", "total_at_most"),
    ):
        rows.append((label, *(_bytes(disk[key]) for disk in disks)))
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A Markdown text with its tables replaced, each between `<!-- table NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: a table has no place in the text.
    """
    for name, table in tables.items():
        opening, closing = f"<!-- table {name} -->", f"<!-- end {name} -->"
        if text.count(opening) != 1 or text.count(closing) != 1:
            raise ValueError(f"the text has no place for the table '{name}': {opening} and its end, once.")
        before, rest = text.split(opening)
        text = f"{before}{opening}\n{table}\n{closing}{rest.split(closing)[1]}"
    return text


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python -m hf_clsi.training.dry_run docs/scale.md")
    document = Path(sys.argv[1])
    document.write_text(with_tables(document.read_text(encoding="utf-8"), scale_tables()), encoding="utf-8")
