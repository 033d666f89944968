"""Turns story rows into packed batches: draws languages, merges units, counts what goes in, fills rows.

The collator holds no random state (see interleave.py) and never changes the rows it is given. All work on
units and sentences is done by numpy on flat arrays (stories.py); Python loops run over the documents of a
packing, and over the sentences of rows that come as lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..configuration_clsi import ClsiConfig
from ..units.runs import collapse_ragged, run_lengths
from .interleave import WHOLE_STORY, Switching, check_weights, draw_document_languages, draw_story_languages
from .packing import IGNORED_LABEL, Layout, fill_rows, lay_out, split_long_documents
from .stories import (
    ANY_LANGUAGE,
    NO_LIMIT,
    Documents,
    ListedStories,
    StoryTable,
    is_arrow,
    listed_documents,
    spread,
)

if TYPE_CHECKING:
    from ..units.merges import UnitMerges

MODES = ("interleaved", "monolingual", "mixed")
PACKINGS = ("best_fit", "concatenate")
SEPARATORS = ("none", "bos", "eos")
#: What a schedule may change from an epoch on.
SCHEDULED = ("mode", "language", "weights", "switch_every", "switch_probability", "start_language")
#: What the collator adds on request and no model takes; see `InterleavingDataCollator`.
ACCOUNTS = ("token_counts", "switch_counts", "languages")
_LONGEST_ROW = 2048  # of `from_pretrained`


@dataclass(frozen=True)
class _Policy:
    """How languages are chosen in some epochs."""

    mode: str
    language: int | None  # of "monolingual"
    weights: np.ndarray  # [L]
    switching: Switching
    drawable: tuple[int, ...]  # languages that a draw may give: rows must have them

    @property
    def by_story(self) -> bool:
        """One draw a document."""
        return self.mode == "mixed" or self.switching.every == WHOLE_STORY


@dataclass(frozen=True)
class PackedRows:
    """A batch whose rows are laid out but not yet filled; see `InterleavingDataCollator.arrange`.

    Attributes:
        layout: where everything stands.
        values, starts: the tokens, and where in them each of the layout's sentences (and parts of sentences)
            begins.
        languages: `[S]` language index of each, in the layout's order.
        account: five arrays `[S]`: tokens, raw units and sentences (1, or 0 for the later parts of one) that
            begin there, and 1 where the border before the sentence is a switch, and where there is such a
            border; None without `return_counts`.
        search: looks for tokens that are out of range, and raises ValueError naming the story; called when
            the rows that are filled give reason to.
    """

    collator: InterleavingDataCollator
    layout: Layout
    values: np.ndarray
    starts: np.ndarray
    languages: np.ndarray
    account: list[np.ndarray] | None
    search: Callable[[], None] | None = None

    @property
    def num_rows(self) -> int:
        return self.layout.num_rows

    def share(self, index: int, parts: int) -> tuple[int, int]:
        """First and last (exclusive) row of part `index` of `parts` contiguous, nearly equal ones."""
        return index * self.num_rows // parts, (index + 1) * self.num_rows // parts

    def part(self, index: int, parts: int) -> dict[str, Any]:
        """The batch of a share; see `share` and `batch`."""
        return self.batch(*self.share(index, parts))

    def batch(self, first_row: int = 0, last_row: int | None = None) -> dict[str, Any]:
        """The batch of some rows, as `InterleavingDataCollator` describes it.

        No rows at all become one row of padding, from which nothing is learned, so that every process has a
        forward. A sentence is counted where it begins.
        """
        last_row = self.num_rows if last_row is None else last_row
        return self.collator._batch(self, first_row, last_row)


class InterleavingDataCollator:
    """Data collator for story rows.

    Use it with `TrainingArguments(remove_unused_columns=False)`, and give the Trainer
    `InterleavingCallback(collator)`, so that every epoch draws anew.

    A row is `{"story_id": str, "units_<L>": sentences}` for every language L; sentences is a list, or an
    object array, of integer lists or arrays. Rows may also hold
      - `tokens_<L>`: the sentences already deduplicated and merged; used in preference (merging is then not
        redone in every epoch). When counts are asked for, `units_<L>` beside it gives the raw units.
      - `epoch` (int): the epoch to draw for, instead of the collator's.
      - `language` (str): this document is monolingual, in that language; the others may be absent.
      - `max_tokens` (int): the document's sentences are cut to that many tokens in all (special tokens not
        counted); a budget ends exactly this way. A document that was cut gets no EOS, since its story does
        not end there.
    Optional keys that are None count as absent. Instead of a list of rows, a batch may come as a pyarrow
    Table or RecordBatch with these columns, or as a `StoryTable`; no unit then passes through Python.

    The batch holds `input_ids`, `labels` and `position_ids`, each `[R, T]` int64; R depends on how full the
    rows are. With `isolate`, documents are kept apart by position ids that restart, with no attention_mask:
    that works on every attention backend as long as the model makes no cache (ClsiForCausalLM takes care of
    it in training). Labels are not shifted; -100 stands on pads and, with `isolate`, on the first token of
    every document.

    A story longer than `max_length` is split at sentence borders (packing="best_fit"); each part begins with
    BOS and the last one has the EOS. Nothing is dropped.

    Args:
        languages: language codes, in the order of the counts and weights.
        num_units: K; may be left out when `merges` is given.
        merges: byte-pair merges of units (hf_clsi.units.merges.UnitMerges), or None.
        max_length: T, tokens a row.
        seed: of the language draw.
        mode: "interleaved" (languages switch inside a document), "mixed" (one draw a document) or
            "monolingual".
        weights: one weight a language for the draw; equal when None.
        language: the language of "monolingual".
        switch_every, switch_probability, start_language: how "interleaved" switches, see `Switching`; the
            defaults draw for every sentence, as in arXiv 2512.01865.
        schedule: what changes from which epoch on, as `{epoch: {"mode": ..., ...}}` with any of mode,
            language, weights, switch_every, switch_probability and start_language; what an entry leaves out
            is as given above.
        packing: "best_fit" or "concatenate", see packing.py.
        isolate: keep packed documents apart; False lets attention and positions run over the whole row.
        separator: the special token between sentences: "none", "bos" or "eos".
        prepend_bos: begin every document (and every part of a split one) with BOS.
        append_eos: end every story with EOS.
        deduplicate: collapse runs of equal units; None takes it from `merges` (False without merges).
        pad_to_max_length: False pads to the longest row only, rounded up to a multiple of 8.
        return_counts: add `token_counts`, `[L, 3]` int64: for every language the tokens (after deduplication
            and merges), raw units and sentences in this batch, special tokens and pads not counted; and
            `switch_counts`, `[2]` int64: borders between sentences of a document at which the language
            changes, and all such borders. A sentence cut by `max_tokens` counts as one sentence, and as the
            raw units up to the end of its last kept token.
        return_languages: add `languages`, `[R, T]` int64: the language index of every token, -1 for special
            tokens and pads.
        return_flash_attn_kwargs: one row `[1, n]` without pads, and beside it `cu_seq_lens_q`,
            `cu_seq_lens_k` (int32), `max_length_q` and `max_length_k` of its pieces, as flash attention's
            varlen kernels take them (transformers' DataCollatorWithFlattening). Needs `isolate`.

    The caller takes `token_counts`, `switch_counts` and `languages` (`ACCOUNTS`) out of the batch before the
    model's forward; `hf_clsi.training.trainer.InterleavingTrainer` does, and logs them.

    Raises:
        ValueError: arguments that contradict each other; in a call, a row that cannot be used (naming its
            story id).

    Example:
        >>> collator = InterleavingDataCollator(["en"], num_units=10, max_length=8)
        >>> batch = collator([{"story_id": "a", "units_en": [[1, 2], [3]]}])
        >>> batch["input_ids"].tolist()
        [[10, 1, 2, 3, 11, 12, 12, 12]]
        >>> batch["labels"].tolist()
        [[-100, 1, 2, 3, 11, -100, -100, -100]]
        >>> batch["position_ids"].tolist()
        [[0, 1, 2, 3, 4, 0, 1, 2]]
    """

    def __init__(
        self,
        languages: Sequence[str],
        num_units: int | None = None,
        merges: UnitMerges | None = None,
        max_length: int = 2048,
        seed: int = 0,
        mode: str = "interleaved",
        weights: Sequence[float] | None = None,
        language: str | None = None,
        packing: str = "best_fit",
        isolate: bool = True,
        separator: str = "none",
        append_eos: bool = True,
        deduplicate: bool | None = None,
        pad_to_max_length: bool = True,
        return_counts: bool = False,
        *,
        prepend_bos: bool = True,
        switch_every: int | str = 1,
        switch_probability: float | None = None,
        start_language: str | None = None,
        schedule: Mapping[int, Mapping[str, Any]] | None = None,
        return_languages: bool = False,
        return_flash_attn_kwargs: bool = False,
    ):
        self.languages = tuple(languages)
        if (
            isinstance(languages, str)
            or not self.languages
            or len(set(self.languages)) != len(self.languages)
        ):
            raise ValueError(
                f"languages must be a list of different codes such as ['en', 'fr'], got {languages!r}"
            )
        for name, value, allowed in (("packing", packing, PACKINGS), ("separator", separator, SEPARATORS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if merges is not None and num_units is not None and merges.num_units != num_units:
            raise ValueError(
                f"num_units is {num_units} but the merges were learned on {merges.num_units} units"
            )
        if merges is None and num_units is None:
            raise ValueError("give num_units, or merges (which know it)")
        if merges is not None and deduplicate is not None and merges.deduplicate != deduplicate:
            raise ValueError(
                f"deduplicate is {deduplicate} but the merges were learned with "
                f"deduplicate={merges.deduplicate}: leave it out or make them equal"
            )
        smallest = 1 + bool(prepend_bos) + bool(append_eos)
        if max_length < smallest:
            needed = ["BOS"] * bool(prepend_bos) + ["one token"] + ["EOS"] * bool(append_eos)
            *others, last = needed
            listed = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(f"max_length must hold {listed} ({smallest}), got {max_length}")
        if return_flash_attn_kwargs and not isolate:
            raise ValueError("return_flash_attn_kwargs needs isolate=True: its kernels keep the pieces apart")

        settings = {
            "mode": mode,
            "language": language,
            "weights": weights,
            "switch_every": switch_every,
            "switch_probability": switch_probability,
            "start_language": start_language,
        }
        self._policies = [(None, self._policy(settings, "the collator"))]
        for epoch, changes in sorted((schedule or {}).items()):
            unknown = set(changes) - set(SCHEDULED)
            if unknown or int(epoch) != epoch or epoch < 0:
                raise ValueError(
                    f"a schedule is {{epoch: settings}} with settings among {', '.join(SCHEDULED)}; got "
                    f"{epoch!r}: {dict(changes)!r}"
                )
            own = {**settings, **changes}
            if "mode" in changes and changes["mode"] != "monolingual" and "language" not in changes:
                own["language"] = None
            self._policies.append((int(epoch), self._policy(own, f"the schedule from epoch {epoch} on")))

        self.num_units = int(merges.num_units if num_units is None else num_units)
        self.merges = merges
        self.num_tokens = self.num_units + (int(merges.num_merges) if merges is not None else 0)
        self.bos_token_id = self.num_tokens
        self.eos_token_id = self.num_tokens + 1
        self.pad_token_id = self.num_tokens + 2
        self.max_length = int(max_length)
        self.seed = int(seed)
        self.mode = mode
        self.weights = self._policies[0][1].weights
        self.language = language
        self.packing = packing
        self.isolate = isolate
        self.separator = separator
        self.prepend_bos = prepend_bos
        self.append_eos = append_eos
        self.deduplicate = bool(merges.deduplicate if merges is not None else deduplicate)
        self.pad_to_max_length = pad_to_max_length
        self.return_counts = return_counts
        self.return_languages = return_languages
        self.return_flash_attn_kwargs = return_flash_attn_kwargs
        # A shared tensor, so that dataloader workers that are alive over several epochs see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, languages: Sequence[str] | None = None, **settings: Any
    ) -> InterleavingDataCollator:
        """The collator that makes documents as a checkpoint was trained on.

        Units, merges, deduplication and separator are the checkpoint's; rows are as long as its context, at
        most 2,048 tokens.

        Args:
            source: folder or Hub id of a model with the processor beside it.
            languages: of the rows; None: those that the checkpoint names.
            **settings: further arguments of the collator, which go before the checkpoint's; and `revision`,
                `token`, `cache_dir` and `local_files_only` for a Hub id.

        Raises:
            ValueError: the checkpoint names no languages, and none were given; files that do not agree.
            OSError: no such checkpoint, or one without its tokenizer.json though it has merges.
        """
        from ..units.merges import UnitMerges

        names = ("revision", "token", "cache_dir", "local_files_only")
        hub = {name: settings.pop(name) for name in names if name in settings}
        config = ClsiConfig.from_pretrained(source, **hub)
        if not languages and not config.languages:
            raise ValueError(f"{source} does not say which languages it was trained on; give `languages`.")
        vocabulary: dict[str, Any] = {"num_units": config.num_units, "deduplicate": config.deduplicate}
        if config.num_merges:
            vocabulary = {"merges": UnitMerges.load(source, **hub)}
        own = {
            **vocabulary,
            "separator": config.separator,
            "max_length": min(_LONGEST_ROW, config.context_length or _LONGEST_ROW),
        }
        return cls(languages or config.languages, **{**own, **settings})

    def _policy(self, settings: Mapping[str, Any], where: str) -> _Policy:
        mode, language = settings["mode"], settings["language"]
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if (mode == "monolingual") != (language is not None):
            raise ValueError(
                f"language is for mode 'monolingual' and needed there, got mode {mode!r}, {language=}"
            )
        index = None if language is None else self._language_index(language, where)
        weights = settings["weights"]
        weights = check_weights(len(self.languages) if weights is None else weights)
        if weights.size != len(self.languages):
            raise ValueError(f"got {weights.size} weights for {len(self.languages)} languages")
        switching = Switching(
            settings["switch_every"], settings["switch_probability"], settings["start_language"]
        )
        if mode != "interleaved" and switching != Switching():
            raise ValueError(
                "switch_every, switch_probability and start_language are for mode 'interleaved', got "
                f"{mode!r}"
            )
        # Languages of weight 0 are never drawn, so rows may lack them.
        drawable = set(np.flatnonzero(weights).tolist())
        if switching.start is not None:
            drawable.add(self._language_index(switching.start, where))
        return _Policy(mode, index, weights, switching, tuple(sorted(drawable)))

    @property
    def epoch(self) -> int:
        """The epoch that languages are drawn for, where a row does not name its own."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, in dataloader workers too."""
        self._epoch.fill_(int(epoch))

    @property
    def separator_token_id(self) -> int | None:
        """The token between sentences; None for "none"."""
        return {"none": None, "bos": self.bos_token_id, "eos": self.eos_token_id}[self.separator]

    def __call__(self, rows: Sequence[Mapping[str, Any]] | StoryTable | Any) -> dict[str, Any]:
        if not len(rows):
            raise ValueError("a batch needs at least one row, got none")
        if isinstance(rows, StoryTable):
            return self.collate(rows)
        if is_arrow(rows):
            return self.collate(StoryTable.from_arrow(rows, self.languages), self._arrow_documents(rows))
        table = ListedStories(rows, self.languages)
        return self.collate(table, listed_documents(rows, self.languages, self.epoch))

    def collate(
        self,
        table: StoryTable,
        documents: Documents | None = None,
        part: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """The batch of some documents of a table, or a part of its rows.

        Args:
            table: the stories.
            documents: what to make of them; None: every story of the table once, in the collator's epoch.
            part: (index, number of parts): the batch is packed as a whole, the same for every part, and only
                that contiguous share of its rows is filled and returned. The parts' counts add up to those of
                the whole.
        """
        arranged = self.arrange(table, documents)
        return arranged.batch() if part is None else arranged.part(*part)

    def arrange(self, table: StoryTable, documents: Documents | None = None) -> PackedRows:
        """Draws languages and lays out rows, without filling them; arguments as in `collate`.

        Raises:
            ValueError: no document, or a story that cannot be used.
        """
        if documents is None:
            documents = Documents.whole(len(table), self.epoch)
        _keep_freed_memory()
        if not len(documents):
            raise ValueError("a batch needs at least one document, got none")
        document, language, sentence, offsets = self._choose(table, documents)
        values, starts, lengths = table.read(self.languages, language, sentence)
        if not lengths.all():
            empty = int(np.flatnonzero(lengths == 0)[0])
            raise ValueError(
                f"{self._name(table, documents, document, offsets, empty)}: it is empty, at least 1 unit "
                "expected"
            )
        story = self._stories(documents, document, language)
        raw = self._is_raw(table, language, story)
        if raw is not None and raw.any():
            values, starts, lengths = self._tokenize(
                values, starts, lengths, raw, lambda i: self._name(table, documents, document, offsets, i)
            )

        def search() -> None:
            self._check_range(table, documents, document, offsets, values, starts, lengths)

        kept = np.arange(lengths.size)  # [S'] indices into what was chosen
        left, offset, complete = lengths, offsets, np.ones(len(documents), dtype=bool)
        if documents.max_tokens.any():
            left, offset, kept, complete = _cut(lengths, offsets, documents.max_tokens)
        account = None
        if self.return_counts:
            if self.merges is not None:
                search()  # before the tokens are looked up
            units = self._count_units(
                table, language[kept], sentence[kept], story[kept], values, starts[kept], left, lengths[kept]
            )
            account = [left, units, np.ones_like(units), *_switches(document[kept], language[kept])]
        kept_starts = starts[kept]
        return self._lay_out(values, kept_starts, left, offset, complete, language[kept], account, search)

    def _choose(
        self, table: StoryTable, documents: Documents
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draws the languages.

        Returns:
            of every sentence `[S]` its document, its language and its place in that language's column, and
            `[D + 1]` the documents' offsets among them.
        """
        num_documents, codes = len(documents), self.languages
        first = np.empty((len(codes), num_documents), dtype=np.int64)
        counts = np.empty_like(first)
        for index, code in enumerate(codes):
            # The first language tells the story, the others tell its partner, where it has one.
            story = documents.story
            if index and (documents.partner >= 0).any():
                story = np.where(documents.partner >= 0, documents.partner, story)
            first[index], counts[index] = table.spans(code, story)

        language = documents.language.copy()
        drawn: list[tuple[np.ndarray, np.ndarray]] = []  # (documents, their sentences' languages)
        size = np.empty(num_documents, dtype=np.int64)
        for policy, which in self._by_policy(documents):
            if policy.language is not None:
                language[which] = policy.language
                continue
            keys, epochs = table.story_keys[documents.story[which]], documents.epoch[which]
            if policy.by_story:
                self._check_languages(table, documents, which, counts, policy, equal=False)
                if policy.switching.start is None:
                    language[which] = draw_story_languages(self.seed, epochs, keys, policy.weights)
                else:
                    language[which] = codes.index(policy.switching.start)
                continue
            self._check_languages(table, documents, which, counts, policy, equal=True)
            size[which] = counts[policy.drawable[0], which]
            sentences = draw_document_languages(
                self.seed, epochs, keys, size[which], codes, policy.weights, policy.switching
            )
            drawn.append((which, sentences))

        decided = np.flatnonzero(language != ANY_LANGUAGE)
        size[decided] = counts[language[decided], decided]
        lacking = decided[size[decided] == 0]
        if lacking.size:
            self._refuse_lacking(table, documents, int(lacking[0]), int(language[lacking[0]]))
        offsets = np.concatenate([[0], np.cumsum(size)])
        document = np.repeat(np.arange(num_documents), size)
        languages = np.repeat(language, size)
        for which, sentences in drawn:
            languages[spread(offsets[which], size[which])] = sentences
        sentence = first[languages, document] + np.arange(document.size) - np.repeat(offsets[:-1], size)
        return document, languages, sentence, offsets

    def _by_policy(self, documents: Documents) -> list[tuple[_Policy, np.ndarray]]:
        """The undecided documents, by the policy of their epoch."""
        undecided = np.flatnonzero(documents.language == ANY_LANGUAGE)
        if not undecided.size:
            return []
        if len(self._policies) == 1:
            return [(self._policies[0][1], undecided)]
        begins = np.array([epoch for epoch, _ in self._policies[1:]])
        own = np.searchsorted(begins, documents.epoch[undecided], side="right")
        return [(self._policies[index][1], undecided[own == index]) for index in np.unique(own).tolist()]

    def _check_languages(self, table, documents, which, counts, policy, equal: bool) -> None:
        """Documents whose languages are drawn need all that a draw may give."""
        own = counts[np.ix_(policy.drawable, which)]  # [drawable, documents]
        if own.all() and not (equal and (own != own[0]).any()):
            return
        lacking = np.argwhere(own == 0)
        if lacking.size:
            language, document = lacking[0]
            self._refuse_lacking(table, documents, int(which[document]), policy.drawable[language])
        document = int(np.flatnonzero((own != own[0]).any(axis=0))[0])
        found = {self.languages[i]: int(n) for i, n in zip(policy.drawable, own[:, document], strict=True)}
        story = table.ids[int(documents.story[which[document]])]
        raise ValueError(
            f"story {story!r}: interleaving needs the same number of sentences in every language, got {found}"
        )

    def _refuse_lacking(self, table, documents: Documents, document: int, language: int) -> None:
        code = self.languages[language]
        raise ValueError(
            f"story {table.ids[int(documents.story[document])]!r}: it has no sentence in {code!r} (no column "
            f"'units_{code}' nor 'tokens_{code}', or an empty one); leave the row out"
        )

    def _name(
        self, table, documents: Documents, document: np.ndarray, offsets: np.ndarray, sentence: int
    ) -> str:
        """'story X, sentence i' for error messages."""
        index = int(document[sentence])
        return f"story {table.ids[int(documents.story[index])]!r}, sentence {sentence - int(offsets[index])}"

    def _stories(self, documents: Documents, document: np.ndarray, language: np.ndarray) -> np.ndarray:
        """`[S]` the story that every sentence is from."""
        story = documents.story[document]
        partner = documents.partner[document]
        if (partner < 0).all():
            return story
        return np.where((partner >= 0) & (language > 0), partner, story)

    def _is_raw(self, table, language: np.ndarray, story: np.ndarray) -> np.ndarray | None:
        """`[S]` raw units that are still to be deduplicated or merged; None where nothing ever is."""
        if self.merges is None and not self.deduplicate:
            return None
        raw = np.empty(language.size, dtype=bool)
        for index in np.flatnonzero(np.bincount(language)).tolist():
            which = language == index
            raw[which] = table.is_raw(self.languages[index], story[which])
        return raw

    def _tokenize(self, values, starts, lengths, raw, name) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raw sentences are deduplicated and merged; the others stay: new (values, starts, lengths)."""
        which = np.flatnonzero(raw)
        flat = values[spread(starts[which], lengths[which])]
        self._check_units(flat, lengths[which], self.num_units, lambda i: name(int(which[i])))
        borders = np.cumsum(lengths[which])
        if self.merges is not None:  # deduplicates first if the merges were learned that way
            done = self.merges.encode(np.split(flat.astype(np.uint16), borders[:-1]))
            new_lengths = np.array([len(sentence) for sentence in done], dtype=np.int64)
            new_values = np.concatenate(done)
        else:
            new_values, new_offsets = collapse_ragged(flat, np.concatenate([[0], borders]))
            new_lengths = np.diff(new_offsets)
        new_starts = np.cumsum(new_lengths) - new_lengths
        if which.size == lengths.size:
            return new_values, new_starts, new_lengths
        rest = np.flatnonzero(~raw)
        others = values[spread(starts[rest], lengths[rest])]
        starts, lengths = starts.copy(), lengths.copy()
        starts[which], lengths[which] = new_starts, new_lengths
        starts[rest] = new_values.size + np.cumsum(lengths[rest]) - lengths[rest]
        return np.concatenate([new_values, others]), starts, lengths

    def _check(self, tokens: np.ndarray, search: Callable[[], None] | None) -> None:
        """Tokens that were gathered, and whatever stands between sentences, which alone is no fault."""
        in_range = int(tokens.max()) < self.num_tokens and (
            tokens.dtype.kind == "u" or int(tokens.min()) >= 0
        )
        if not in_range and search is not None:
            search()

    def _check_range(self, table, documents, document, offsets, values, starts, lengths) -> None:
        """All tokens of all sentences must be below num_units + num_merges."""
        self._check_units(
            values[spread(starts, lengths)],
            lengths,
            self.num_tokens,
            lambda i: self._name(table, documents, document, offsets, i),
            "unit" if self.merges is None else "token",
        )

    def _check_units(self, flat, lengths, limit: int, name, kind: str = "unit") -> None:
        """Units or tokens, sentence after sentence, must lie in 0..limit - 1."""
        wrong = np.flatnonzero((flat < 0) | (flat >= limit))
        if wrong.size:
            sentence = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
            raise ValueError(
                f"{name(sentence)}: {kind} {int(flat[wrong[0]])} is out of range, expected 0..{limit - 1}; "
                f"were these rows made with another audio tokenizer"
                f"{' or other merges' if self.merges is not None else ''}?"
            )

    def _lay_out(self, values, starts, lengths, offsets, complete, language, account, search) -> PackedRows:
        """Sentences -> documents -> rows; `complete` `[D]`: the document was not cut."""
        separator, ends = self.separator_token_id is not None, complete
        if self.packing == "best_fit":
            parts, new_offsets, is_last = split_long_documents(
                lengths,
                offsets,
                self.max_length,
                bos=self.prepend_bos,
                eos=self.append_eos,
                separator=separator,
            )
            if is_last.size != complete.size:
                # Parts of sentences: each is read after the ones before; the first has the counts.
                position = np.cumsum(parts) - parts
                stops = np.cumsum(lengths)
                origin = np.searchsorted(stops, position, side="right")
                within = position - (stops - lengths)[origin]
                starts, language = starts[origin] + within, language[origin]
                if account is not None:
                    account = [np.where(within == 0, column[origin], 0) for column in account]
                ends = is_last & complete[np.cumsum(is_last) - is_last]
            lengths, offsets = parts, new_offsets
        layout = lay_out(
            lengths,
            offsets,
            self.max_length,
            packing=self.packing,
            bos=self.prepend_bos,
            eos=self.append_eos,
            separator=separator,
            ends=ends,
            fixed_width=self.pad_to_max_length,
        )
        order = layout.sentence
        return PackedRows(
            self,
            layout,
            values,
            starts[order],
            language[order],
            None if account is None else [column[order] for column in account],
            search,
        )

    def _batch(self, packed: PackedRows, first_row: int, last_row: int) -> dict[str, Any]:
        layout = packed.layout
        if first_row >= last_row:
            arrays = {
                "input_ids": np.full((1, layout.width), self.pad_token_id),
                "labels": np.full((1, layout.width), IGNORED_LABEL),
                "position_ids": np.arange(layout.width)[None],
            }
        else:
            names = ("input_ids", "labels", "position_ids")
            filled = fill_rows(
                layout,
                packed.values,
                packed.starts,
                (first_row, last_row),
                bos=self.bos_token_id,
                eos=self.eos_token_id,
                separator=self.separator_token_id,
                pad=self.pad_token_id,
                isolate=self.isolate,
                check=lambda tokens: self._check(tokens, packed.search),
            )
            arrays = dict(zip(names, filled, strict=True))
        low, high = first_row * layout.width, last_row * layout.width
        begin = slice(*np.searchsorted(layout.cell, [low, high]).tolist())  # sentences that begin here
        if packed.account is not None:
            columns = [column[begin] for column in packed.account]
            sums = [
                np.bincount(packed.languages[begin], column, len(self.languages)) for column in columns[:3]
            ]
            arrays["token_counts"] = np.stack(sums, axis=1).astype(np.int64)  # exact in float64 below 2**53
            arrays["switch_counts"] = np.array([int(column.sum()) for column in columns[3:]])
        if self.return_languages:
            arrays["languages"] = _languages_of(packed, arrays["input_ids"].shape, low, high)
        batch: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.return_flash_attn_kwargs:
            _flatten(batch, layout, first_row, last_row)
        return batch

    def _count_units(
        self, table, language, sentence, story, values, starts, lengths, full_lengths
    ) -> np.ndarray:
        """Raw units of every kept sentence, `[S]` int64.

        A whole sentence has as many as its raw column, a cut one those up to the end of its last kept token.
        Without a raw column the merges' token lengths give them, unless runs were collapsed: they are lost.
        """

        def units_in(which: np.ndarray) -> np.ndarray:
            """Units (after deduplication) in the tokens of some sentences."""
            if self.merges is None:
                return lengths[which]
            per_token = np.asarray(self.merges.token_lengths, dtype=np.int64)
            tokens = values[spread(starts[which], lengths[which])]
            return np.add.reduceat(per_token[tokens], np.cumsum(lengths[which]) - lengths[which])

        everything = np.arange(lengths.size)
        if not self.deduplicate:
            return units_in(everything)
        units = np.empty(lengths.size, dtype=np.int64)
        for index in np.flatnonzero(np.bincount(language)).tolist():
            which, code = np.flatnonzero(language == index), self.languages[index]
            known = table.raw_lengths(code, sentence[which], story[which])
            if known is None:
                raise ValueError(
                    f"story {table.ids[int(story[which[0]])]!r}: raw units cannot be counted from "
                    f"deduplicated tokens; keep the column 'units_{code}' beside them or set "
                    f"return_counts=False"
                )
            units[which] = known
        cut = np.flatnonzero(lengths < full_lengths)
        if cut.size:
            for position, collapsed in zip(cut.tolist(), units_in(cut).tolist(), strict=True):
                code = self.languages[int(language[position])]
                raw = table.raw_sentence(code, int(sentence[position]), int(story[position]))
                units[position] = run_lengths(raw)[1][:collapsed].sum()
        return units

    def _arrow_documents(self, table: Any) -> Documents:
        """Documents of an Arrow table, which may name their language, epoch and max_tokens."""
        names = [name for name in ("language", "epoch", "max_tokens") if name in table.schema.names]
        if not names:
            return Documents.whole(len(table), self.epoch)
        columns = [table.column(name).to_pylist() for name in ("story_id", *names)]
        rows = [dict(zip(("story_id", *names), values, strict=True)) for values in zip(*columns, strict=True)]
        return listed_documents(rows, self.languages, self.epoch)

    def _language_index(self, language: Any, where: str) -> int:
        if language not in self.languages:
            raise ValueError(f"{where}: language {language!r} is not one of {', '.join(self.languages)}")
        return self.languages.index(language)


class InterleavingCallback(TrainerCallback):
    """Tells the collator which epoch it is, so that every epoch draws the languages anew.

    `state.epoch` alone is not enough: with an iterable dataset of unknown length it still is, at the start of
    an epoch, the fraction reached in the epoch before; so the epochs begun since the start of training count
    too.
    """

    def __init__(self, collator: InterleavingDataCollator):
        self.collator = collator
        self._last = -1

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._last = max(int(state.epoch or 0), self._last + 1)
        self.collator.set_epoch(self._last)


@cache
def _keep_freed_memory() -> None:
    """Lets glibc keep the memory of one batch for the next; once a process.

    Arrays of megabytes are given back to the system when they are freed, and to fault their pages in again
    took two thirds of a batch's time. The C library raises its limits to the size of the largest array that
    it has seen freed, up to 32 MiB; the pages of this one are never touched. Elsewhere it does nothing.
    """
    np.empty(31 << 20, dtype=np.uint8)


def _cut(
    lengths: np.ndarray, offsets: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keeps the first `limits[d]` tokens of document d (0: all).

    Args:
        lengths: `[S]` of the sentences, offsets: `[D + 1]` in sentences, limits: `[D]` in tokens.

    Returns:
        `[S']` lengths of what is left, `[D + 1]` offsets, `[S']` the indices of the sentences that are
        (partly) left, and `[D]` bool: the document lost nothing.
    """
    counts = np.diff(offsets)
    limits = np.where(limits == NO_LIMIT, np.iinfo(np.int64).max, limits)
    starts = np.cumsum(lengths) - lengths
    in_document = starts - np.repeat(
        starts[offsets[:-1]], counts
    )  # tokens of the document before the sentence
    left = np.clip(np.repeat(limits, counts) - in_document, 0, lengths)
    kept = np.flatnonzero(left)
    document = np.repeat(np.arange(counts.size), counts)
    new_offsets = np.concatenate([[0], np.cumsum(np.bincount(document[kept], minlength=counts.size))])
    complete = np.add.reduceat(left, offsets[:-1]) == np.add.reduceat(lengths, offsets[:-1])
    return left[kept], new_offsets.astype(np.int64), kept, complete


def _switches(document: np.ndarray, language: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[S]` 0 or 1: the language changes at the border before this sentence; there is such a border."""
    switch, border = np.zeros_like(document), np.zeros_like(document)
    border[1:] = document[1:] == document[:-1]
    switch[1:] = border[1:] & (language[1:] != language[:-1])
    return switch, border


def _languages_of(packed: PackedRows, shape: tuple[int, int], low: int, high: int) -> np.ndarray:
    """The language of every cell from `low` to `high`, -1 where there is none."""
    layout = packed.layout
    languages = np.full(shape, ANY_LANGUAGE, dtype=np.int64)
    start, stop = np.maximum(layout.cell, low), np.minimum(layout.cell + layout.length, high)
    inside = np.flatnonzero(start < stop)
    length = stop[inside] - start[inside]
    languages.reshape(-1)[spread(start[inside] - low, length)] = np.repeat(packed.languages[inside], length)
    return languages


def _flatten(batch: dict[str, Any], layout: Layout, first_row: int, last_row: int) -> None:
    """Makes one row without pads of a batch, with the borders of its pieces."""
    if first_row >= last_row:
        borders, total = np.array([0, layout.width]), layout.width
    else:
        used = layout.used[first_row:last_row]
        low = first_row * layout.width
        inside = slice(*np.searchsorted(layout.piece, [low, last_row * layout.width]).tolist())
        piece = layout.piece[inside] - low
        row = piece // layout.width
        gone = (np.arange(used.size) * layout.width) - (np.cumsum(used) - used)  # pads before each row
        total = int(used.sum())
        borders = np.concatenate([piece - gone[row], [total]])
        keep = torch.from_numpy(spread(np.arange(used.size) * layout.width, used))
        for name in ("input_ids", "labels", "position_ids", "languages"):
            if name in batch:
                batch[name] = batch[name].reshape(1, -1)[:, keep]
    cumulative = torch.from_numpy(borders.astype(np.int32))
    longest = int(np.diff(borders).max())
    batch |= {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative.clone()}
    batch |= {"max_length_q": longest, "max_length_k": longest}
