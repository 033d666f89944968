"""Token budgets: a stage and the lengths of the stories become an exact plan; what was fed becomes a ledger.

Because the language draw is stateless (batches/interleave.py), everything a stage will read can be computed
beforehand: which story in which epoch, in which language, where the last document is cut. The plan therefore
knows its number of steps and its tokens per language, and a stage ends on its budget to the token. The ledger
counts independently, from the batches that really went into the model, and is compared after every stage.
Cost: one vectorized pass over the sentences and one permutation of the stories per epoch of a stage.

Letters: N stories, S sentences of all stories, L languages, D documents of a stage, B batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from ..batches.interleave import draw_document_languages, story_key
from ..batches.stories import ANY_LANGUAGE, NO_LIMIT, Documents
from .recipes import Recipe, StageSettings

#: Name of the reading of an interleaved stage, beside the languages'.
INTERLEAVED = "*"
_MAX_EPOCHS = 10_000
# Of everything that is kept for a document: at the paper's size, a stage has some 50 million of them.
_INTEGER = np.int32


@dataclass(frozen=True)
class StoryLengths:
    """Tokens per sentence of every story, the same number of sentences in every language.

    Attributes:
        keys: [N] uint64, `story_key` of each story id.
        offsets: [N + 1] int64, where each story's sentences begin.
        tokens: language -> [S] int64.
    """

    keys: np.ndarray
    offsets: np.ndarray
    tokens: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, story_ids: Sequence[str], sentences: Mapping[str, Sequence[Sequence[np.ndarray]]]
    ) -> StoryLengths:
        """From token arrays: `sentences[language][story][sentence]`.

        Raises:
            ValueError: no story at all, a language with more or fewer stories than ids, a story whose number
                of sentences differs between languages, or one without a sentence or with an empty one.
        """
        if not len(story_ids):
            raise ValueError("there is no training story; a plan needs at least one.")
        languages = list(sentences)
        counts: dict[str, np.ndarray] = {}
        tokens: dict[str, np.ndarray] = {}
        for code, stories in sentences.items():
            if len(stories) != len(story_ids):
                raise ValueError(
                    f"there are {len(story_ids)} story ids but {len(stories)} stories in {code}."
                )
            counts[code] = np.array([len(story) for story in stories], dtype=np.int64)
            for index in np.flatnonzero(counts[code] != counts[languages[0]]):
                expected = counts[languages[0]][index]
                raise ValueError(
                    f"story '{story_ids[index]}' has {expected} sentences in {languages[0]} and "
                    f"{counts[code][index]} in {code}; aligned stories have the same number."
                )
            for index in np.flatnonzero(counts[code] == 0):
                raise ValueError(f"story '{story_ids[index]}' has no sentence; leave it out.")
            tokens[code] = np.array([len(s) for story in stories for s in story], dtype=np.int64)
            for sentence in np.flatnonzero(tokens[code] == 0):
                index = np.searchsorted(np.cumsum(counts[code]), sentence, side="right")
                raise ValueError(
                    f"story '{story_ids[index]}' has a sentence without tokens in {code}; leave it out."
                )
        return cls(
            keys=np.array([story_key(story_id) for story_id in story_ids], dtype=np.uint64),
            offsets=np.concatenate([[0], np.cumsum(counts[languages[0]])]),
            tokens=tokens,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def per_story(self, language: str) -> np.ndarray:
        """Tokens of every story in one language, [N]."""
        return np.add.reduceat(self.tokens[language], self.offsets[:-1])


@dataclass(frozen=True)
class StagePlan:
    """Every document of a stage, in order, and where its batches end.

    Attributes:
        settings: of the stage.
        story: [D] integers, index of the story.
        epoch: [D] integers, epoch that its languages are drawn for; every stage counts its own from 0.
        language: [D] integers, index of its only language, or -1 where every sentence draws.
        max_tokens: [D] integers, cut to so many tokens; 0: whole.
        partner: [D] integers, the story that gives the other languages' sentences (-1: the story itself).
        batches: [B + 1] int64, offsets of the batches among the documents.
        tokens: [L] int64, tokens by language that will be read, exactly (special tokens do not count).
    """

    settings: StageSettings
    story: np.ndarray
    epoch: np.ndarray
    language: np.ndarray
    max_tokens: np.ndarray
    partner: np.ndarray
    batches: np.ndarray
    tokens: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.batches) - 1

    def documents(self, step: int) -> Documents:
        """The documents of one optimizer step."""
        those = slice(int(self.batches[step]), int(self.batches[step + 1]))
        columns = (self.story, self.epoch, self.language, self.max_tokens, self.partner)
        return Documents(*(column[those].astype(np.int64) for column in columns))


@dataclass
class _Documents:
    story: np.ndarray
    epoch: np.ndarray
    language: np.ndarray
    max_tokens: np.ndarray
    partner: np.ndarray
    tokens: np.ndarray  # [D, L]

    def take(self, order: np.ndarray) -> _Documents:
        return _Documents(*(getattr(self, name)[order] for name in self.__dataclass_fields__))

    def at(self, places: np.ndarray) -> _Documents:
        """With the places `[M]` of the stories among all, instead of those among the readable ones."""
        places = places.astype(_INTEGER)
        partner = np.where(self.partner >= 0, places[self.partner], self.partner)
        return _Documents(
            places[self.story], self.epoch, self.language, self.max_tokens, partner, self.tokens
        )


def plan_stage(
    settings: StageSettings,
    budgets: Mapping[str, int],
    lengths: StoryLengths | Mapping[str, tuple[StoryLengths, np.ndarray]],
    languages: Sequence[str],
    tokens_per_step: int,
    seed: int,
) -> StagePlan:
    """Everything a stage will read.

    Args:
        settings: the stage; its `parts` are not used here, `budgets` holds them in tokens.
        budgets: language -> tokens, or `{"*": tokens}` for interleaved stages.
        lengths: of the training stories, after merging; or, where stories lack languages, for every language
            (and "*" for interleaved stages) the lengths of those that can be read and their places `[M]`
            among all stories.
        languages: codes in the order of the collator.
        tokens_per_step: sentence tokens a batch should reach (whole documents, so within one document).
        seed: of the run and of its collator; the order of stories also depends on the stage's name, the
            language and the epoch.

    Raises:
        ValueError: a budget for other languages than the stage's, one that is not positive, or one so large
            that the corpus would be read over 10,000 times; a story without a partner (unaligned mode).
    """
    languages = tuple(languages)
    if set(budgets) != set(settings.parts) or not set(budgets) <= {"*", *languages}:
        raise ValueError(
            f"stage '{settings.name}' has parts for {sorted(settings.parts)}, got budgets for "
            f"{sorted(budgets)}; the languages are {', '.join(languages)}."
        )
    for code, tokens in budgets.items():
        if tokens < 1:
            raise ValueError(
                f"stage '{settings.name}' has a budget of {tokens} tokens for '{code}'; expected at least 1. "
                "In a completing stage, the stages before it have already used it up."
            )
    if isinstance(lengths, StoryLengths):
        lengths = dict.fromkeys((INTERLEAVED, *languages), (lengths, np.arange(len(lengths))))
    if settings.mode.startswith("interleaved"):
        readable, places = lengths[INTERLEAVED]
        documents = _interleaved(settings, budgets[INTERLEAVED], readable, languages, seed).at(places)
        batches = _batch_ends(documents.tokens.sum(1), tokens_per_step)
    else:
        parts = []
        for code, tokens in budgets.items():
            readable, places = lengths[code]
            index = languages.index(code)
            parts.append(_monolingual(settings.name, index, tokens, readable, languages, seed).at(places))
        if settings.mode == "alternating":
            documents, batches = _alternate(parts, tokens_per_step)
        else:
            documents = _merge(settings.name, parts, seed)
            batches = _batch_ends(documents.tokens.sum(1), tokens_per_step)
    return StagePlan(
        settings=settings,
        story=documents.story,
        epoch=documents.epoch,
        language=documents.language,
        max_tokens=documents.max_tokens,
        partner=documents.partner,
        batches=batches,
        tokens=documents.tokens.sum(0),
    )


def _generator(seed: int, *names: str | int) -> np.random.Generator:
    """A stream of its own for every purpose, the same on every machine."""
    keys = [story_key(name) if isinstance(name, str) else name for name in names]
    return np.random.default_rng([seed, *keys])


def _monolingual(name, language, budget, lengths, languages, seed) -> _Documents:
    """Stories of one language, each epoch in a new order, up to exactly `budget` tokens."""
    per_story = lengths.per_story(languages[language])

    def epoch_of(epoch: int):
        order = _generator(seed, name, languages[language], epoch).permutation(len(lengths))
        counts = np.zeros((len(order), len(languages)), dtype=np.int64)
        counts[:, language] = per_story[order]
        return order, np.full(len(order), -1), counts

    def cut(epoch: int, story: int, partner: int, keep: int):
        return np.where(np.arange(len(languages)) == language, keep, 0)

    documents = _fill(name, budget, epoch_of, cut)
    documents.language[:] = language
    return documents


def _interleaved(settings: StageSettings, budget, lengths, languages, seed) -> _Documents:
    """Stories whose sentences draw their language, up to exactly `budget` tokens."""
    name, unaligned = settings.name, settings.mode == "interleaved-unaligned"
    starts, counts_of = lengths.offsets[:-1], np.diff(lengths.offsets)
    sentence_story = np.repeat(np.arange(len(lengths)), counts_of)
    sentence_index = np.arange(len(sentence_story)) - np.repeat(starts, counts_of)

    def epoch_of(epoch: int):
        drawn = draw_document_languages(
            seed,
            np.full(len(lengths), epoch),
            lengths.keys,
            counts_of,
            languages,
            settings.weights,
            settings.switching,
        )  # [S] language of every sentence of every story
        partner = np.full(len(lengths), -1)
        if unaligned:
            partner = _partners(_generator(seed, name, "partners", epoch), counts_of)
        counts = np.zeros((len(lengths), len(languages)), dtype=np.int64)
        for index, code in enumerate(languages):
            # The first language tells the story, the others tell its partner, where it has one.
            source = starts[partner] if unaligned and index > 0 else starts
            tokens = lengths.tokens[code][np.repeat(source, counts_of) + sentence_index]
            counts[:, index] = np.bincount(sentence_story, np.where(drawn == index, tokens, 0), len(lengths))
        order = _generator(seed, name, epoch).permutation(len(lengths))
        return order, partner[order], counts[order]

    def cut(epoch: int, story: int, partner: int, keep: int):
        counts = np.zeros(len(languages), dtype=np.int64)
        indices = np.arange(counts_of[story])
        one = slice(story, story + 1)
        drawn = draw_document_languages(
            seed,
            np.array([epoch]),
            lengths.keys[one],
            counts_of[one],
            languages,
            settings.weights,
            settings.switching,
        )
        for index, language in zip(indices.tolist(), drawn.tolist(), strict=True):
            source = partner if unaligned and language > 0 else story
            sentence = lengths.tokens[languages[language]][starts[source] + index]
            counts[language] += min(int(sentence), keep - int(counts.sum()))
        return counts

    return _fill(name, budget, epoch_of, cut)


def _partners(rng: np.random.Generator, sentence_counts: np.ndarray) -> np.ndarray:
    """For every story another one with the same number of sentences, each used once."""
    partner = np.empty(len(sentence_counts), dtype=np.int64)
    for size in np.unique(sentence_counts):
        members = np.flatnonzero(sentence_counts == size)
        if len(members) < 2:
            raise ValueError(
                f"only one story has {size} sentences, so it has no partner for unaligned interleaving; "
                "leave it out or add more stories."
            )
        ring = rng.permutation(members)
        partner[ring] = np.roll(ring, 1)
    return partner


def _fill(
    name: str,
    budget: int,
    epoch_of: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    cut: Callable[[int, int, int, int], np.ndarray],
) -> _Documents:
    """Epoch after epoch until the budget is reached; the last document is cut to what is left.

    Args:
        epoch_of: epoch -> its stories in order [N], their partners [N], their tokens by language [N, L].
        cut: (epoch, story, partner, tokens to keep) -> the tokens kept, by language [L].
    """
    parts, seen = [], 0
    for epoch in count():
        order, partner, counts = epoch_of(epoch)
        totals = counts.sum(1)
        if not epoch and budget > _MAX_EPOCHS * totals.sum():
            raise ValueError(
                f"stage '{name}' has a budget of {budget} tokens, for which it would read its {totals.sum()} "
                f"tokens over {_MAX_EPOCHS} times; give more stories or a smaller budget."
            )
        cumulative = seen + np.cumsum(totals)
        last = int(np.searchsorted(cumulative, budget))  # first document that reaches the budget
        stop = min(last + 1, len(order))
        limits = np.full(stop, NO_LIMIT)
        counts = counts[:stop].copy()
        if last < len(order) and cumulative[last] > budget:
            limits[-1] = totals[last] - (cumulative[last] - budget)
            counts[-1] = cut(epoch, int(order[last]), int(partner[last]), int(limits[-1]))
        columns = (order[:stop], np.full(stop, epoch), limits, partner[:stop], counts)
        parts.append([column.astype(_INTEGER) for column in columns])
        seen = int(cumulative[stop - 1])
        if seen >= budget:
            break
    story, epochs, limits, partner, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    language = np.full(len(story), ANY_LANGUAGE, dtype=_INTEGER)
    return _Documents(story, epochs, language, limits, partner, counts)


def _merge(name: str, parts: list[_Documents], seed: int) -> _Documents:
    """Documents of several languages, spread evenly: each language keeps its own order."""
    position = np.concatenate([(np.arange(len(part.story)) + 0.5) / len(part.story) for part in parts])
    # A little noise, so that the mixture is no fixed rhythm: at most 1 / D, while two documents of a language
    # are 1 / (their number) apart and so keep their order.
    position += _generator(seed, name, "mixture").uniform(0, 1 / len(position), len(position))
    return _join(parts).take(np.argsort(position, kind="stable"))


def _alternate(parts: list[_Documents], tokens_per_step: int) -> tuple[_Documents, np.ndarray]:
    """Batches of one language each, in turns; what one language has more than the other comes at the end."""
    ends = [_batch_ends(part.tokens.sum(1), tokens_per_step) for part in parts]
    starts = np.concatenate([[0], np.cumsum([len(part.story) for part in parts])])
    order, batches = [], [0]
    for turn in range(max(len(end) - 1 for end in ends)):
        for index, end in enumerate(ends):
            if turn < len(end) - 1:
                order.append(starts[index] + np.arange(end[turn], end[turn + 1]))
                batches.append(batches[-1] + len(order[-1]))
    return _join(parts).take(np.concatenate(order)), np.array(batches)


def _join(parts: list[_Documents]) -> _Documents:
    names = _Documents.__dataclass_fields__
    return _Documents(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _batch_ends(tokens: np.ndarray, tokens_per_step: int) -> np.ndarray:
    """Offsets [B + 1] of batches among documents of `tokens` [D].

    Batch i (from 0) ends with the document that reaches (i + 1) * tokens_per_step, whatever the ones before
    have overrun, so that the number of steps is the budget's; the last one takes the rest, up to one and a
    half steps. A document that reaches several of these marks ends one batch, and none is empty.

    >>> _batch_ends(np.array([6, 6, 6, 6, 6]), 10)
    array([0, 2, 4, 5])
    >>> _batch_ends(np.array([25, 2]), 10)
    array([0, 1, 2])
    """
    cumulative = np.cumsum(tokens)
    steps = max(1, round(int(cumulative[-1]) / tokens_per_step))
    ends = np.searchsorted(cumulative, np.arange(1, steps) * tokens_per_step) + 1
    return np.unique(np.concatenate([[0], ends, [len(tokens)]]))


@dataclass
class Ledger:
    """What a run has really fed to its model, by stage and language.

    `add` takes the collator's `token_counts`. Corpus sizes turn tokens into epochs; the frame rate turns raw
    units into seconds of speech.
    """

    languages: tuple[str, ...]
    corpus_tokens: dict[str, int]
    frame_rate_hz: float
    stages: list[dict[str, Any]] = field(default_factory=list)

    def open(self, name: str, mode: str) -> None:
        """Begin a stage."""
        zeros = dict.fromkeys(self.languages, 0)
        self.stages.append(
            {"stage": name, "mode": mode, "steps": 0, "tokens": dict(zeros), "units": dict(zeros)}
        )

    def add(self, counts: np.ndarray) -> None:
        """One forward's counts [L, 3]: tokens, raw units, sentences."""
        stage = self.stages[-1]
        for index, code in enumerate(self.languages):
            stage["tokens"][code] += int(counts[index, 0])
            stage["units"][code] += int(counts[index, 1])

    def step(self) -> None:
        """One optimizer step is done."""
        self.stages[-1]["steps"] += 1

    def tokens(self, language: str | None = None) -> int:
        """Tokens so far, in one language or in all."""
        codes = self.languages if language is None else (language,)
        return sum(stage["tokens"][code] for stage in self.stages for code in codes)

    def to_dict(self) -> dict[str, Any]:
        """The recipe's entry of ledger.json: tokens, raw units, seconds and epochs by language."""
        total: dict[str, Any] = {"steps": sum(stage["steps"] for stage in self.stages)}
        for key in ("tokens", "units"):
            total[key] = {code: sum(stage[key][code] for stage in self.stages) for code in self.languages}
        return {"stages": [self._complete(stage) for stage in self.stages], "total": self._complete(total)}

    def _complete(self, counts: dict[str, Any]) -> dict[str, Any]:
        tokens, units = counts["tokens"], counts["units"]
        return {
            **counts,
            "tokens": dict(tokens),
            "units": dict(units),
            "seconds": {code: round(units[code] / self.frame_rate_hz, 6) for code in self.languages},
            "epochs": {code: round(tokens[code] / self.corpus_tokens[code], 6) for code in self.languages},
        }


def stage_budgets(recipe: Recipe, stage: StageSettings, ledger: Ledger) -> dict[str, int]:
    """Tokens by language (or "*") that a stage gets, given what the run has seen so far.

    Not positive where a completing stage comes too late; `plan_stage` refuses that.
    """
    if stage.completes:
        targets = recipe.language_targets()
        return {code: targets[code] - ledger.tokens(code) for code in stage.parts}
    return {code: recipe.tokens(parts) for code, parts in stage.parts.items()}


def matched(
    ledgers: Mapping[str, Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Whether recipes have seen the same number of tokens, in total and per language.

    Args:
        ledgers: recipe name -> `Ledger.to_dict()`.
        pairs: names of recipes to compare; those with a recipe that was not run are left out.

    Returns:
        One entry a pair. `unit_ratio` is a's raw units over b's, by language: raw units follow the tokens
        only nearly, since other stories have other runs and merges. A language that b never saw has none.
    """
    entries = []
    for a, b in pairs:
        if a not in ledgers or b not in ledgers:
            continue
        first, second = ledgers[a]["total"], ledgers[b]["total"]
        entries.append(
            {
                "a": a,
                "b": b,
                "total_equal": sum(first["tokens"].values()) == sum(second["tokens"].values()),
                "languages_equal": first["tokens"] == second["tokens"],
                "unit_ratio": {
                    code: round(units / second["units"][code], 4)
                    for code, units in first["units"].items()
                    if second["units"].get(code)
                },
            }
        )
    return entries
