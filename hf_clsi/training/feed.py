"""A recipe and its stories become optimizer steps: batches for one process, each with the position after it.

Two orders (`DataSettings.order`), two feeds:

- "global", `PlannedFeed`: every epoch permutes all stories. Everything is planned beforehand
  (`budget.plan_stage`), the same in every process, which takes its share of each step's packed rows. The
  stories must be at hand, in memory or memory-mapped. Memory: about 8 bytes a document of the recipe, and
  200 a document of a stage while that is planned.
- "shards", `StreamedFeed`: the corpus is read in V lanes side by side, each with its own shards, its own
  share of every budget and its own packing; a process takes V / N of them. A lane permutes its shards anew
  in every epoch, and the stories of a block when it has read it. Memory: one block a lane and reading.

Neither holds random state: a position says where the next step begins, and from there all goes as if nothing
had been interrupted. Equal recipes, stories and lanes give equal steps, streamed or not, for any number of
processes.

Letters: D documents, L languages, R packed rows, T tokens a row, V lanes, N processes, A micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..batches.collator import InterleavingDataCollator, PackedRows
from ..batches.interleave import draw_document_languages
from ..batches.packing import IGNORED_LABEL, Layout
from ..batches.stories import ANY_LANGUAGE, NO_LIMIT, NO_PARTNER, Documents, StoryTable, spread
from .budget import _MAX_EPOCHS, INTERLEAVED, Ledger, StagePlan, _generator, plan_stage, stage_budgets
from .recipes import Recipe, StageSettings
from .stories import ShardedStories, join_tables, story_lengths, take_stories

_PAD_WIDTH = 8  # tokens of a batch of nothing


@dataclass
class StepBatch:
    """One optimizer step of one process.

    Attributes:
        micro_batches: A batches as the collator makes them, with `token_counts` and all else that it was told
            to return. One without rows is a row of padding, from which nothing is learned.
        stage: index of the stage.
        position: where the next step begins; plain types, for a checkpoint.
    """

    micro_batches: list[dict[str, Any]]
    stage: int
    position: dict[str, Any]


class Feed(Protocol):
    """All steps of a recipe, for one process."""

    num_steps: list[int]  # optimizer steps of every stage

    def steps(self, position: dict[str, Any] | None = None) -> Iterator[StepBatch]:
        """From a position (None: the beginning) to the end of the recipe, over all stages."""


def stage_collators(
    recipe: Recipe, num_units: int | None = None, merges: Any = None, **options: Any
) -> list[InterleavingDataCollator]:
    """The collator of every stage; `options` are further arguments (`return_languages`, ...)."""
    batch, collators = recipe.batch, []
    for stage in recipe.stages:
        settings: dict[str, Any] = {
            "num_units": num_units,
            "merges": merges,
            "max_length": batch.max_length,
            "seed": recipe.seed,
            "packing": batch.packing,
            "isolate": batch.isolate,
            "separator": batch.separator,
            "prepend_bos": batch.prepend_bos,
            "append_eos": batch.append_eos,
            "pad_to_max_length": False,
            "return_counts": True,
        }
        if stage.interleaved:  # in all other modes the documents say which language they are in
            settings |= {
                "weights": stage.weights,
                "switch_every": stage.switching.every,
                "switch_probability": stage.switching.probability,
                "start_language": stage.switching.start,
            }
        collators.append(InterleavingDataCollator(recipe.languages, **{**settings, **options}))
    return collators


def _check_collators(recipe: Recipe, collators: Sequence[InterleavingDataCollator]) -> None:
    if len(collators) != len(recipe.stages):
        raise ValueError(
            f"recipe '{recipe.name}' has {len(recipe.stages)} stages, got {len(collators)} collators; "
            "stage_collators makes them."
        )
    for stage, collator in zip(recipe.stages, collators, strict=True):
        if collator.languages != recipe.languages or collator.seed != recipe.seed:
            raise ValueError(
                f"the collator of stage '{stage.name}' has the languages {collator.languages} and seed "
                f"{collator.seed}, the recipe {recipe.languages} and {recipe.seed}; they must agree."
            )


def _check_merged(table: StoryTable, collator: InterleavingDataCollator) -> None:
    """Budgets count what the model reads, so the stories must hold just that."""
    merges = collator.merges
    if table.raw and (collator.deduplicate or (merges is not None and merges.num_merges)):
        raise ValueError(
            "the stories hold raw units, but the model reads them deduplicated or merged; open them with its "
            "merges (open_stories(..., merges=...)), so that budgets count tokens."
        )


def _drawable(stage: StageSettings, languages: Sequence[str]) -> list[str]:
    """Languages that the draw of an interleaved stage may give."""
    weights = (1.0,) * len(languages) if stage.weights is None else stage.weights
    return [
        code
        for code, weight in zip(languages, weights, strict=True)
        if weight > 0 or code == stage.switching.start
    ]


def _check_ranks(rank: int, world_size: int, accumulation: int | None) -> None:
    if not 0 <= rank < world_size or (accumulation is not None and accumulation < 1):
        raise ValueError(
            f"rank lies in 0..world_size - 1 and accumulation is at least 1, got {rank=}, {world_size=}, "
            f"{accumulation=}."
        )


# -- global order --------------------------------------------------------------------------------------------


class PlannedFeed:
    """The order "global": documents are permuted over the whole corpus, everything is planned beforehand.

    Args:
        recipe: its settings.
        stories: the corpus, merged; `MappedStories.table` or one in memory. Stories may lack languages: each
            stage reads those that have what it needs.
        collators: of the stages, see `stage_collators`.
        rank, world_size: of the process.
        accumulation: A, micro-batches of every step; None: as many as `batch.rows_per_forward` asks for,
            which may differ between steps and processes (FSDP needs equal numbers).

    Steps can also be had by number (`feed[17]`), so a data loader may have several workers.

    Raises:
        ValueError: settings that contradict each other, and what `plan_stage` refuses.
    """

    def __init__(
        self,
        recipe: Recipe,
        stories: StoryTable,
        collators: Sequence[InterleavingDataCollator],
        rank: int = 0,
        world_size: int = 1,
        accumulation: int | None = None,
    ):
        _check_ranks(rank, world_size, accumulation)
        _check_collators(recipe, collators)
        for collator in collators:
            _check_merged(stories, collator)
        self.recipe, self.stories, self.collators = recipe, stories, list(collators)
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.plans = [_compact(plan) for plan in plan_stages(recipe, stories)]
        self.num_steps = [plan.num_steps for plan in self.plans]
        self._ends = np.cumsum(self.num_steps)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def documents(self, step: int) -> tuple[int, Documents]:
        """The stage of a step of the recipe, and all its documents."""
        step = range(len(self))[step]
        stage = int(np.searchsorted(self._ends, step, side="right"))
        plan = self.plans[stage]
        own = step - (int(self._ends[stage - 1]) if stage else 0)
        return stage, plan.documents(own)

    def __getitem__(self, step: int) -> StepBatch:
        stage, documents = self.documents(step)
        packed = self.collators[stage].arrange(self.stories, documents)
        first, last = packed.share(self.rank, self.world_size)
        cuts = _cuts(last - first, self.accumulation, self.recipe.batch.rows_per_forward)
        micro_batches = [packed.batch(first + low, first + high) for low, high in cuts]
        return StepBatch(micro_batches, stage, {"step": step + 1})

    def steps(self, position: dict[str, Any] | None = None) -> Iterator[StepBatch]:
        """See `Feed`. In a data loader with W workers, each gives every W-th step."""
        first = 0
        if position is not None:
            if set(position) != {"step"} or not 0 <= position["step"] <= len(self):
                raise ValueError(
                    f"expected a position {{'step': 0 to {len(self)}}} of the order 'global', got "
                    f"{position}; was this checkpoint written in another order, or with another recipe?"
                )
            first = position["step"]
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(first + index, len(self), workers):
            yield self[step]


def plan_stages(recipe: Recipe, stories: StoryTable) -> list[StagePlan]:
    """All stages' plans, each with the budgets that the plans before it leave; stories may lack languages."""
    ledger = Ledger(recipe.languages, dict.fromkeys(recipe.languages, 1), frame_rate_hz=1.0)
    plans = []
    for stage in recipe.stages:
        if stage.interleaved:
            needed = _drawable(stage, recipe.languages)
            lengths = {INTERLEAVED: story_lengths(stories, recipe.languages, needed)}
        else:
            lengths = {code: story_lengths(stories, [code], [code]) for code in stage.parts}
        budgets = stage_budgets(recipe, stage, ledger)
        plan = plan_stage(
            stage, budgets, lengths, recipe.languages, recipe.batch.tokens_per_step, recipe.seed
        )
        plans.append(plan)
        ledger.open(stage.name, stage.mode)
        ledger.add(np.stack([plan.tokens, np.zeros_like(plan.tokens)], axis=1))
    return plans


def _compact(plan: StagePlan) -> StagePlan:
    """The same plan in the smallest integers: five int64 for each of 60 million documents are 2.4 GB."""

    def small(array: np.ndarray) -> np.ndarray:
        low, high = int(array.min()), int(array.max())
        if low == high:  # most often nothing is cut and nobody has a partner
            return np.broadcast_to(np.int64(low), array.shape)
        return array.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))

    names = ("story", "epoch", "language", "max_tokens", "partner")
    return StagePlan(
        settings=plan.settings,
        **{name: small(getattr(plan, name)) for name in names},
        batches=plan.batches,
        tokens=plan.tokens,
    )


# -- sharded order -------------------------------------------------------------------------------------------


class StreamedFeed:
    """The order "shards": V lanes read the shards of a corpus block by block.

    Lane v has the shards v, v + V, ... and of every budget its share, exact to the token; process r has the
    lanes r, r + N, ... The i-th step of a lane ends with the document that reaches i / (steps of the stage)
    of the lane's budget, and holds one document at least while there are any; the last document is cut. A
    stage that `completes` brings every lane to its share of the targets, from what the lane itself has read.
    Steps are those of `Recipe.expected_steps`.

    Args:
        recipe: its settings; `recipe.data` has the lanes and the stories of a block.
        source: the corpus, merged, see training/stories.py.
        collators: of the stages, see `stage_collators`.
        rank, world_size: of the process.
        accumulation: A, micro-batches of every step; None: as many as `batch.rows_per_forward` asks for,
            which may differ between steps and processes (FSDP needs equal numbers).

    Raises:
        ValueError: lanes that do not go with the processes or the shards; the mode "interleaved-unaligned",
            whose partners are looked for in the whole corpus; budgets smaller than the lanes. While reading:
            a lane that has no story in some language.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ShardedStories,
        collators: Sequence[InterleavingDataCollator],
        rank: int = 0,
        world_size: int = 1,
        accumulation: int | None = None,
    ):
        _check_ranks(rank, world_size, accumulation)
        _check_collators(recipe, collators)
        lanes = recipe.data.lanes
        if lanes % world_size:
            raise ValueError(
                f"data.lanes is {lanes}, which {world_size} processes cannot share equally; set it to a "
                f"multiple of {world_size}."
            )
        if source.num_shards < lanes:
            raise ValueError(
                f"data.lanes is {lanes}, but the data have {source.num_shards} shards; set at most as many "
                "lanes, or write the data in more shards (write_shards(..., max_rows_per_shard=...))."
            )
        for stage in recipe.stages:
            if stage.mode == "interleaved-unaligned":
                raise ValueError(
                    f"stage '{stage.name}' is interleaved-unaligned: partners are looked for in the whole "
                    "corpus, which shards do not show. Set data.order to 'global'."
                )
            for name, parts in stage.parts.items():
                if recipe.tokens(parts) < lanes:
                    raise ValueError(
                        f"stage '{stage.name}' has {recipe.tokens(parts)} tokens of '{name}' for {lanes} "
                        "lanes; set fewer lanes or a larger budget."
                    )
        self.recipe, self.source, self.collators = recipe, source, list(collators)
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.lanes = list(range(rank, lanes, world_size))
        self.num_steps = list(recipe.expected_steps().values())

    def steps(self, position: dict[str, Any] | None = None) -> Iterator[StepBatch]:
        """See `Feed`. In a data loader, one worker at most.

        Args:
            position: of this process; or, if their number has changed, those of all (`join_positions`).
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"the order 'shards' is read in sequence, but the data loader has {worker.num_workers} "
                "workers; set dataloader_num_workers to 1 (or 0)."
            )
        stage, step, states = self._start(position)
        while stage < len(self.num_steps):
            lanes = [_Lane(self, stage, lane, states[lane]) for lane in self.lanes]
            while step < self.num_steps[stage]:
                micro_batches = self._micro_batches(stage, step, [lane.step(step) for lane in lanes])
                step += 1
                at_end = step == self.num_steps[stage]
                now = {lane.number: lane.state(at_end) for lane in lanes}
                place = (stage + 1, 0) if at_end else (stage, step)
                yield StepBatch(micro_batches, stage, self._position(*place, now))
            states = now
            for lane in lanes:
                lane.close()
            stage, step = stage + 1, 0

    def _position(self, stage: int, step: int, states: Mapping[int, dict]) -> dict[str, Any]:
        return {
            "stage": stage,
            "step": step,
            "num_lanes": self.recipe.data.lanes,
            "num_shards": self.source.num_shards,
            "lanes": {str(lane): state for lane, state in states.items()},
        }

    def _start(self, position: dict[str, Any] | None) -> tuple[int, int, dict[int, dict]]:
        if position is None:
            nothing = {"read": [0] * len(self.recipe.languages), "readings": {}}
            return 0, 0, dict.fromkeys(self.lanes, nothing)
        fresh = self._position(0, 0, {})
        for name in ("num_lanes", "num_shards"):
            if position.get(name) != fresh[name]:
                raise ValueError(
                    f"the position was written with {name} = {position.get(name)}, now it is {fresh[name]}; "
                    "resume with the same data, data.order and data.lanes, or begin anew."
                )
        missing = [lane for lane in self.lanes if str(lane) not in position["lanes"]]
        if missing:
            raise ValueError(
                f"the position is that of lanes {', '.join(position['lanes'])}, but process {self.rank} of "
                f"{self.world_size} reads lanes {', '.join(map(str, self.lanes))}; with another number of "
                "processes, give it the positions of all of them (join_positions)."
            )
        return (
            position["stage"],
            position["step"],
            {lane: position["lanes"][str(lane)] for lane in self.lanes},
        )

    @staticmethod
    def join_positions(positions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The positions of all processes after one step as one, from which any number of them can go on.

        Raises:
            ValueError: positions of different steps or runs.
        """
        first = positions[0]
        lanes: dict[str, Any] = {}
        for position in positions:
            for name in ("stage", "step", "num_lanes", "num_shards"):
                if position[name] != first[name]:
                    raise ValueError(
                        f"positions of different steps: one has {name} = {first[name]}, another "
                        f"{position[name]}; take those of one checkpoint."
                    )
            lanes |= position["lanes"]
        return {**first, "lanes": lanes}

    def _micro_batches(
        self, stage: int, step: int, chosen: Sequence[tuple[StoryTable, Documents] | None]
    ) -> list[dict[str, Any]]:
        """The lanes' rows, one lane after the other, in A contiguous shares."""
        collator = self.collators[stage]
        packed = [collator.arrange(*each) for each in chosen if each is not None]
        if not packed and self.world_size == 1:
            settings = self.recipe.stages[stage]
            raise ValueError(
                f"step {step} of stage '{settings.name}' has no document left: its stories are longer than "
                f"batch.tokens_per_step / data.lanes = {self.recipe.batch.tokens_per_step} / "
                f"{self.recipe.data.lanes}. Set more tokens a step or fewer lanes."
            )
        ends = np.cumsum([0, *(each.num_rows for each in packed)])
        micro_batches = []
        for first, last in _cuts(int(ends[-1]), self.accumulation, self.recipe.batch.rows_per_forward):
            parts = []
            for each, begin in zip(packed, ends[:-1].tolist(), strict=True):
                low, high = max(first - begin, 0), min(last - begin, each.num_rows)
                if low < high:
                    parts.append(each.batch(low, high))
            micro_batches.append(_join_batches(parts, collator) if parts else _empty_batch(collator))
        return micro_batches


class _Lane:
    """One lane in one stage."""

    def __init__(self, feed: StreamedFeed, stage: int, number: int, state: Mapping[str, Any]):
        recipe = feed.recipe
        self.number, self.settings = number, recipe.stages[stage]
        self.languages = recipe.languages
        self.read = np.array(state["read"], dtype=np.int64)  # [L] tokens over all stages
        readings = state["readings"]
        # What the lane had read when the stage began.
        before = self.read.copy()
        for reading in readings.values():
            before -= np.array(reading["read"], dtype=np.int64)
        self.budgets = self._budgets(recipe, before)
        self.turns = self._turns(recipe, feed.num_steps[stage])
        self.readings = {
            name: _Reading(feed, stage, number, name, readings.get(name)) for name in self.settings.parts
        }

    def _budgets(self, recipe: Recipe, before: np.ndarray) -> dict[str, int]:
        """This lane's share of the stage's budgets, by language or "*"."""
        lanes = recipe.data.lanes

        def share(tokens: int) -> int:
            return tokens * (self.number + 1) // lanes - tokens * self.number // lanes

        if not self.settings.completes:
            return {name: share(recipe.tokens(parts)) for name, parts in self.settings.parts.items()}
        targets, budgets = recipe.language_targets(), {}
        for code in self.settings.parts:
            budgets[code] = share(targets[code]) - int(before[self.languages.index(code)])
            if budgets[code] < 1:
                raise ValueError(
                    f"stage '{self.settings.name}' completes {share(targets[code])} tokens of '{code}' in "
                    f"lane {self.number}, which has already read {share(targets[code]) - budgets[code]}. Set "
                    "fewer lanes, or smaller parts for the stages before."
                )
        return budgets

    def _turns(self, recipe: Recipe, num_steps: int) -> list[tuple[tuple[str, ...], int, int]]:
        """Of every step: the readings that it takes from, its number among theirs, and how many they have."""
        names = tuple(self.settings.parts)
        if self.settings.mode != "alternating":
            return [(names, index, num_steps) for index in range(num_steps)]
        expected = recipe.expected_tokens()[self.settings.name]
        steps = {code: max(1, round(expected[code] / recipe.batch.tokens_per_step)) for code in names}
        turns = range(max(steps.values()))
        return [((code,), turn, steps[code]) for turn in turns for code in names if turn < steps[code]]

    def step(self, index: int) -> tuple[StoryTable, Documents] | None:
        """The documents of a step of the stage, and a table of their stories; None if nothing is left."""
        names, number, steps = self.turns[index]
        readings = [self.readings[name] for name in names]
        budget = sum(self.budgets[name] for name in names)
        chosen: list[_Chosen] = []
        while True:
            seen = sum(reading.tokens for reading in readings)
            if seen == budget or (chosen and seen * steps >= budget * (number + 1)):
                break
            reading = min(readings, key=lambda each: each.tokens / self.budgets[each.name])
            chosen.append(reading.take(self.budgets[reading.name]))
        return _gather(chosen) if chosen else None

    def state(self, at_end: bool) -> dict[str, Any]:
        """What a position holds of this lane; at the end of a stage only what it has read."""
        read = self.read.copy()
        for reading in self.readings.values():
            read += reading.new
        readings = {} if at_end else {name: each.state() for name, each in self.readings.items()}
        return {"read": read.tolist(), "readings": readings}

    def close(self) -> None:
        for reading in self.readings.values():
            reading.close()


@dataclass(frozen=True)
class _Chosen:
    """A document: a story of a block."""

    block: _Block
    story: int
    epoch: int
    language: int
    max_tokens: int


@dataclass(frozen=True)
class _Block:
    """A block that is being read: its readable stories `[n]` in their order, and their tokens `[n, L]`."""

    table: StoryTable
    order: np.ndarray
    tokens: np.ndarray

    @cached_property
    def totals(self) -> list[int]:
        return self.tokens.sum(1).tolist()


class _Reading:
    """One lane's stories in one language ("*": in those of the draw), epoch after epoch."""

    def __init__(self, feed: StreamedFeed, stage: int, lane: int, name: str, state: Mapping[str, Any] | None):
        recipe = feed.recipe
        self.settings, self.collator = recipe.stages[stage], feed.collators[stage]
        self.source, self.size, self.seed = feed.source, recipe.data.block_stories, recipe.seed
        self.lane, self.name, self.languages = lane, name, recipe.languages
        self.needed = _drawable(self.settings, recipe.languages) if name == INTERLEAVED else [name]
        self.language = ANY_LANGUAGE if name == INTERLEAVED else recipe.languages.index(name)
        lanes = recipe.data.lanes
        self.shards = [
            shard
            for shard in range(lane, self.source.num_shards, lanes)
            if self.source.languages_of(shard).issuperset(self.needed)
        ]
        if not self.shards:
            self._refuse_empty()
        if state is None:
            state = {
                "epoch": 0, "shard": 0, "block": 0, "offset": 0, "read": [0] * len(self.languages),
            }  # fmt: skip
        self.epoch, self.shard, self.number, self.offset = (
            state["epoch"], state["shard"], state["block"], state["offset"],
        )  # fmt: skip
        self.read = np.array(state["read"], dtype=np.int64)  # [L] tokens of this stage
        self.new = np.zeros_like(self.read)  # of these, since this object was made
        self.tokens = int(self.read.sum())
        self._whole_epoch = not (self.shard or self.number or self.offset)  # seen from its beginning
        self._found = 0  # tokens of this epoch, as far as seen
        self._block: _Block | None = None
        self._blocks: Iterator[StoryTable] | None = None

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "shard": self.shard,
            "block": self.number,
            "offset": self.offset,
            "read": self.read.tolist(),
        }

    def close(self) -> None:
        """Lets go of files and block."""
        if self._blocks is not None and hasattr(self._blocks, "close"):
            self._blocks.close()
        self._blocks = self._block = None

    def take(self, budget: int) -> _Chosen:
        """The next document, cut to what the budget leaves."""
        while self._block is None or self.offset >= len(self._block.order):
            self._advance(budget)
        block, index = self._block, self.offset
        total, counts, left = block.totals[index], block.tokens[index], budget - self.tokens
        limit = NO_LIMIT
        if total > left:
            total = limit = left
            counts = self._cut(block.table, int(block.order[index]), left)
        self.offset += 1
        self.tokens += total
        self.read += counts
        self.new += counts
        return _Chosen(block, int(block.order[index]), self.epoch, self.language, limit)

    def _advance(self, budget: int) -> None:
        """On to the next block, shard or epoch; or, at first, to the block that the position names."""
        if self._block is not None:
            self.number, self.offset = self.number + 1, 0
        if self._blocks is None:
            shard = self.shards[self._order()[self.shard]]
            self._blocks = iter(self.source.blocks(shard, self.number, self.size))
        table = next(self._blocks, None)
        if table is not None:
            _check_merged(table, self.collator)
            self._block = self._read(table)
            self._found += int(self._block.tokens.sum())
            return
        self.close()
        self.shard, self.number, self.offset = self.shard + 1, 0, 0
        if self.shard == len(self.shards):
            if self._whole_epoch and not self._found:
                self._refuse_empty()
            if self._whole_epoch and budget > _MAX_EPOCHS * self._found:
                raise ValueError(
                    f"stage '{self.settings.name}' has a budget of {budget} tokens in lane {self.lane}, for "
                    f"which it would read its {self._found} tokens over {_MAX_EPOCHS} times; give more "
                    "stories or a smaller budget."
                )
            self.epoch, self.shard, self._whole_epoch, self._found = self.epoch + 1, 0, True, 0

    def _order(self) -> np.ndarray:
        """The lane's shards in the order of this epoch."""
        generator = _generator(self.seed, self.settings.name, self.name, self.epoch, "lane", self.lane)
        return generator.permutation(len(self.shards))

    def _read(self, table: StoryTable) -> _Block:
        """Permutes a block's stories, drops those that lack a language, and counts the tokens of the rest."""
        shard = self.shards[self._order()[self.shard]]
        generator = _generator(
            self.seed, self.settings.name, self.name, self.epoch, "block", shard, self.number
        )
        order = generator.permutation(len(table))
        readable = np.ones(len(table), dtype=bool)
        for code in self.needed:
            readable &= table.spans(code, np.arange(len(table)))[1] > 0
        order = order[readable[order]]
        tokens = np.zeros((len(order), len(self.languages)), dtype=np.int64)
        if len(order):
            document, language, lengths = self._sentences(table, order)
            np.add.at(tokens, (document, language), lengths)
        return _Block(table, order, tokens)

    def _sentences(self, table: StoryTable, stories: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every sentence of some stories: its document, its language, its tokens."""
        counts = table.spans(self.needed[0], stories)[1]
        document = np.repeat(np.arange(len(stories)), counts)
        within = spread(np.zeros_like(counts), counts)
        if self.language == ANY_LANGUAGE:
            language = draw_document_languages(
                self.seed,
                np.full(len(stories), self.epoch),
                table.story_keys[stories],
                counts,
                self.languages,
                self.settings.weights,
                self.settings.switching,
            )
        else:
            language = np.full(len(document), self.language)
        lengths = np.empty(len(document), dtype=np.int64)
        for code in self.needed:
            own = language == self.languages.index(code)
            place = table.spans(code, stories)[0][document[own]] + within[own]
            offsets = table.columns[code].sentence_offsets
            lengths[own] = offsets[place + 1] - offsets[place]
        return document, language, lengths

    def _cut(self, table: StoryTable, story: int, keep: int) -> np.ndarray:
        """Tokens by language of a story's first `keep` tokens."""
        _, language, lengths = self._sentences(table, np.array([story]))
        kept = np.clip(keep - (np.cumsum(lengths) - lengths), 0, lengths)
        return np.bincount(language, kept, len(self.languages)).astype(np.int64)

    def _refuse_empty(self) -> None:
        raise ValueError(
            f"stage '{self.settings.name}': lane {self.lane} has no story in {' and '.join(self.needed)}; "
            "set fewer lanes, or spread those stories over all shards."
        )


def _gather(chosen: Sequence[_Chosen]) -> tuple[StoryTable, Documents]:
    """Documents from several blocks as documents of one table."""
    blocks: dict[int, list[int]] = {}  # places in `chosen`
    for place, document in enumerate(chosen):
        blocks.setdefault(id(document.block), []).append(place)
    tables, story, base = [], np.empty(len(chosen), dtype=np.int64), 0
    for places in blocks.values():
        stories = np.array([chosen[place].story for place in places])
        tables.append(take_stories(chosen[places[0]].block.table, stories))
        story[places] = base + np.arange(len(places))
        base += len(places)
    documents = Documents(
        story,
        np.array([document.epoch for document in chosen], dtype=np.int64),
        np.array([document.language for document in chosen], dtype=np.int64),
        np.array([document.max_tokens for document in chosen], dtype=np.int64),
        np.full(len(chosen), NO_PARTNER, dtype=np.int64),
    )
    return join_tables(tables), documents


# -- batches -------------------------------------------------------------------------------------------------


def _cuts(rows: int, accumulation: int | None, rows_per_forward: int | None) -> list[tuple[int, int]]:
    """Rows of a process -> first and last (exclusive) of each micro-batch; one at least, if empty.

    >>> _cuts(5, 2, None), _cuts(5, None, 2), _cuts(0, None, 2)
    ([(0, 2), (2, 5)], [(0, 2), (2, 4), (4, 5)], [(0, 0)])
    """
    if accumulation is None:
        size = rows_per_forward or max(1, rows)
        return [(low, min(low + size, rows)) for low in range(0, max(1, rows), size)]
    marks = [index * rows // accumulation for index in range(accumulation + 1)]
    return list(pairwise(marks))


def _join_batches(parts: list[dict[str, Any]], collator: InterleavingDataCollator) -> dict[str, Any]:
    """Rows that were packed apart as one batch: padded to the widest, or (varlen) in one row."""
    if len(parts) == 1:
        return parts[0]
    joined = dict(parts[0])
    for name in ("token_counts", "switch_counts"):
        if name in joined:
            joined[name] = torch.stack([part[name] for part in parts]).sum(0)
    names = [name for name in ("input_ids", "labels", "position_ids", "languages") if name in joined]
    if collator.return_flash_attn_kwargs:
        sizes = np.cumsum([0, *(part["input_ids"].shape[1] for part in parts)]).tolist()
        for name in names:
            joined[name] = torch.cat([part[name] for part in parts], dim=1)
        borders = [
            part["cu_seq_lens_q"][int(index > 0) :] + size
            for index, (part, size) in enumerate(zip(parts, sizes[:-1], strict=True))
        ]
        cumulative = torch.cat(borders).to(torch.int32)
        joined |= {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative.clone()}
        longest = max(part["max_length_q"] for part in parts)
        return joined | {"max_length_q": longest, "max_length_k": longest}
    width = max(part["input_ids"].shape[1] for part in parts)
    fills = {"input_ids": collator.pad_token_id, "labels": IGNORED_LABEL, "languages": ANY_LANGUAGE}
    for name in names:
        rows = []
        for part in parts:
            values = part[name]
            more = width - values.shape[1]
            if not more:
                rows.append(values)
            elif name == "position_ids":
                # Padding is one more piece: it goes on counting, or begins where the row was full.
                padded = part["input_ids"][:, -1:] == collator.pad_token_id
                begin = torch.where(padded, values[:, -1:] + 1, torch.zeros_like(values[:, -1:]))
                rows.append(torch.cat([values, begin + torch.arange(more)], dim=1))
            else:
                rows.append(torch.nn.functional.pad(values, (0, more), value=fills[name]))
        joined[name] = torch.cat(rows)
    return joined


def _empty_batch(collator: InterleavingDataCollator) -> dict[str, Any]:
    """A row of padding, with everything that a batch of this collator has."""
    none = np.zeros(0, dtype=np.int64)
    width = collator.max_length if collator.pad_to_max_length else min(_PAD_WIDTH, collator.max_length)
    layout = Layout(0, width, none, none, none, none, none, none, none, none)
    account = [none] * 5 if collator.return_counts else None
    return PackedRows(collator, layout, none, none, none, account).batch()
