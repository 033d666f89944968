"""Turns a causal language model and cloze items into log-likelihood sums, each prompt computed once.

Items are grouped by prompt. A group becomes one row of a batch, a small tree flattened into a line:

    tokens     bos  p1  p2  sep | a1  a2  a3 | b1  b2
    position     0   1   2    3 |  4   5   6 |  4   5
    sees         everything before it in the prompt and in its own ending, never the other ending

so n items that share a prompt cost one prompt and their distinct endings instead of 2n whole sequences. The
restarting positions and the [B, 1, T, T] mask give every token exactly the context that it has in its own
sequence; scores equal the one-sequence-at-a-time way within float tolerance. Rows of similar length share a
batch, so hardly anything is spent on padding.

Axes: B rows of a batch, T tokens of a row, V vocabulary, n items, 2 endings (0 correct, 1 negative).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

SPANS = ("whole", "ending", "gain")
NORMALIZATIONS = ("mean", "sum")

# Rows of [V] logits turned into float32 log-probabilities at a time; bounds the extra copy at 4096 * V * 4
# bytes.
LOGIT_ROWS = 4096
# Endings of one tree, in tokens (or as many as its prompt has, if that is more): attention costs the square
# of a tree's length, so a prompt with hundreds of endings is cheaper computed a few times than in one endless
# row.
TREE_ENDING_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """Log-likelihoods (natural logarithm) of n cloze items, from which every span and normalization derives.

    Attributes:
        ids: n item ids, in the order of the items that were scored.
        prompt_sum: float64 [n], log p of the prompt's tokens (separators included) after BOS.
        prompt_tokens: int64 [n], how many tokens `prompt_sum` sums.
        ending_sum: float64 [n, 2], log p(ending | BOS, prompt); column 0 the correct ending, 1 the negative.
        ending_tokens: int64 [n, 2].
        unconditional_sum: float64 [n, 2], log p(ending | BOS); NaN where it was not computed.
    """

    ids: list[str]
    prompt_sum: np.ndarray
    prompt_tokens: np.ndarray
    ending_sum: np.ndarray
    ending_tokens: np.ndarray
    unconditional_sum: np.ndarray

    def __post_init__(self):
        n = len(self.ids)
        for name, shape in (
            ("prompt_sum", (n,)),
            ("prompt_tokens", (n,)),
            ("ending_sum", (n, 2)),
            ("ending_tokens", (n, 2)),
            ("unconditional_sum", (n, 2)),
        ):
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{name} has shape {got}; {n} ids need {shape}.")

    def __len__(self) -> int:
        return len(self.ids)

    def score(self, span: str = "whole", normalization: str = "mean") -> np.ndarray:
        """Score of both endings of every item, float64 [n, 2]; higher is likelier.

        Spans: `whole` = log p(prompt, ending | BOS); `ending` = log p(ending | BOS, prompt); `gain` =
        log p(ending | BOS, prompt) - log p(ending | BOS), the domain-conditional PMI of Holtzman et al. 2021
        (arXiv 2104.08315, section 3) with BOS as the domain. `mean` divides by the tokens of the span (of the
        ending for `gain`).

        Under `sum`, `whole` and `ending` differ by the prompt's sum alone and so rank the two endings alike.
        Under `mean` they need not: where the endings differ in length, `whole` leans towards the one that
        dilutes an unlikely prompt (the longer) or keeps a likely one (the shorter).
        """
        if span not in SPANS:
            raise ValueError(f"span is {span!r}; choose one of {SPANS}.")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is {normalization!r}; choose one of {NORMALIZATIONS}.")
        total, tokens = self.ending_sum, self.ending_tokens
        if span == "whole":
            total, tokens = total + self.prompt_sum[:, None], tokens + self.prompt_tokens[:, None]
        elif span == "gain":
            if np.isnan(self.unconditional_sum).any():
                raise ValueError("These scores hold no log p(ending | BOS); score the items with gain=True.")
            total = total - self.unconditional_sum
        return total / tokens if normalization == "mean" else total.copy()

    def select(self, indices: Sequence[int] | np.ndarray) -> ItemScores:
        """The items at `indices` (integers, in that order; or a bool mask of length n)."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        fields = [f.name for f in dataclasses.fields(self) if f.name != "ids"]
        return ItemScores(
            ids=[self.ids[i] for i in indices], **{name: getattr(self, name)[indices] for name in fields}
        )

    def swapped(self) -> ItemScores:
        """The same scores with the correct and the negative ending exchanged (a check on any accuracy)."""
        return dataclasses.replace(
            self,
            ending_sum=self.ending_sum[:, ::-1].copy(),
            ending_tokens=self.ending_tokens[:, ::-1].copy(),
            unconditional_sum=self.unconditional_sum[:, ::-1].copy(),
        )


@dataclasses.dataclass
class _Tree:
    """One prompt (BOS first) and the distinct endings to score after it; `slots` says where the sums go."""

    prompt: np.ndarray  # int64 [P]
    endings: list[np.ndarray]  # each int64 [E_k]
    slots: list[int]  # one output slot an ending
    prompt_slot: int  # output slot of the prompt's own sum; -1: already scored in another tree
    length: int  # P + sum of E_k


def score_items(
    model: torch.nn.Module,
    items: Sequence[Any],
    *,
    bos_token_id: int,
    separator_token_id: int | None = None,
    batch_tokens: int = 8192,
    device: str | torch.device | None = None,
    progress: bool = True,
    gain: bool = True,
    share_prompts: bool | None = None,
) -> ItemScores:
    """Scores both endings of every cloze item under a causal language model.

    The sequence of an ending is `[bos] s1 [sep] s2 ... [sep] ending`, without a final EOS; a separator before
    the ending belongs to the prompt. Log-probabilities are taken in float32 and summed in float64.

    Args:
        model: any causal LM whose forward takes input_ids, attention_mask, position_ids and use_cache and
            returns `.logits` [B, T, V]. Its train/eval mode and its device are left as found.
        items: objects or mappings with `id`, `prompt` (a list of sentences, each a token array; a single
            token array is one sentence), `correct` and `negative` (token arrays). Tokens, not raw frames:
            deduplication and merges are done before.
        bos_token_id: the token before every sequence.
        separator_token_id: the token between sentences; None for no separator.
        batch_tokens: tokens of a batch, padding included (a row that alone is longer is a batch of its own).
        device: where to compute; None for where the model is.
        progress: shows a bar that counts tokens.
        gain: also computes log p(ending | BOS), once for each distinct ending; False saves that pass.
        share_prompts: compute a prompt once for all its endings (needs an attention that takes a [B, 1, T, T]
            mask: sdpa or eager, every layer full attention). None: whenever the model can.

    Raises:
        ValueError: naming the item, where an ending, the prompt or one of its sentences is empty, a token is
            outside the model's vocabulary, or a sequence is longer than the model's max_position_embeddings.

    Example:
        >>> items = [{"id": "a", "prompt": [[5, 3], [7]], "correct": [4, 4], "negative": [9]}]
        >>> scores = score_items(model, items, bos_token_id=10)  # doctest: +SKIP
        >>> scores.score("ending", "mean").shape  # doctest: +SKIP
        (1, 2)
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
    vocab_size, max_positions = model_limits(model)
    for name, token in (("bos_token_id", bos_token_id), ("separator_token_id", separator_token_id)):
        if token is not None and not 0 <= token < vocab_size:
            raise ValueError(f"{name} is {token}, outside the model's vocabulary of {vocab_size} tokens.")
    if share_prompts is None:
        share_prompts = takes_tree_mask(model)
    elif share_prompts and not takes_tree_mask(model):
        raise ValueError(
            "share_prompts needs sdpa or eager attention with full attention in every layer; "
            'call model.set_attn_implementation("sdpa"), or leave share_prompts at None.'
        )

    prompts, prompt_of, endings, endings_of, ids = _deduplicate(
        items, bos_token_id, separator_token_id, vocab_size, max_positions
    )
    trees, pair_slot = _grow(prompts, prompt_of, endings, endings_of, batch_tokens, share_prompts)
    n_prompts, n_pairs = len(prompts), len(pair_slot)
    if gain:
        bos = np.array([bos_token_id], dtype=np.int64)
        first = n_prompts + n_pairs
        trees += [_Tree(bos, [e], [first + k], -1, 1 + len(e)) for k, e in enumerate(endings)]

    sums = np.zeros(n_prompts + n_pairs + len(endings), dtype=np.float64)
    with evaluating(model, device) as on:
        bar = tqdm(
            total=sum(t.length for t in trees),
            unit="tok",
            unit_scale=True,
            desc="score",
            disable=not progress,
        )
        with bar:
            for batch in length_batches([t.length for t in trees], batch_tokens):
                chosen = [trees[i] for i in batch]
                _score_batch(model, chosen, sums, on)
                bar.update(sum(t.length for t in chosen))

    pairs = np.array(
        [[pair_slot[p, c], pair_slot[p, w]] for p, (c, w) in zip(prompt_of, endings_of, strict=True)],
        dtype=np.int64,
    ).reshape(-1, 2)
    endings_index = np.array(endings_of, dtype=np.int64).reshape(-1, 2)
    prompt_index = np.array(prompt_of, dtype=np.int64)
    prompt_tokens = np.array([len(p) - 1 for p in prompts], dtype=np.int64)  # BOS itself is not scored
    ending_tokens = np.array([len(e) for e in endings], dtype=np.int64)
    unconditional = sums[n_prompts + n_pairs :] if gain else np.full(len(endings), np.nan)
    return ItemScores(
        ids=ids,
        prompt_sum=sums[:n_prompts][prompt_index],
        prompt_tokens=prompt_tokens[prompt_index],
        ending_sum=sums[pairs],
        ending_tokens=ending_tokens[endings_index],
        unconditional_sum=unconditional[endings_index],
    )


# --- items -> distinct prompts, distinct endings, trees
# -------------------------------------------------------


def _field(item: Any, name: str) -> Any:
    try:
        return item[name] if isinstance(item, Mapping) else getattr(item, name)
    except (KeyError, AttributeError):
        raise ValueError(
            f"A cloze item needs id, prompt, correct and negative; {name!r} is missing."
        ) from None


def _deduplicate(items, bos, separator, vocab_size, max_positions):
    """Checks the items; returns distinct prompts (BOS included) and endings, and which item uses which."""
    prompts: list[np.ndarray] = []
    endings: list[np.ndarray] = []
    known_prompts: dict[bytes, int] = {}
    known_endings: dict[bytes, int] = {}
    ids, prompt_of, endings_of = [], [], []
    for item in items:
        item_id = str(_field(item, "id"))
        where = f"item {item_id!r}"
        prompt = _join(_field(item, "prompt"), bos, separator, vocab_size, where)
        pair = []
        for name in ("correct", "negative"):
            ending = token_array(_field(item, name), vocab_size, f"{where}, {name} ending")
            if max_positions is not None and len(prompt) + len(ending) > max_positions:
                raise ValueError(
                    f"{where}: BOS, prompt and {name} ending are {len(prompt) + len(ending)} tokens, more "
                    f"than the model's max_position_embeddings ({max_positions}); shorten the prompt."
                )
            key = ending.tobytes()
            if key not in known_endings:
                known_endings[key] = len(endings)
                endings.append(ending)
            pair.append(known_endings[key])
        key = prompt.tobytes()
        if key not in known_prompts:
            known_prompts[key] = len(prompts)
            prompts.append(prompt)
        ids.append(item_id)
        prompt_of.append(known_prompts[key])
        endings_of.append((pair[0], pair[1]))
    return prompts, prompt_of, endings, endings_of, ids


def _join(prompt, bos, separator, vocab_size, where) -> np.ndarray:
    """[bos] s1 [sep] s2 ... sN [sep], int64."""
    if len(prompt) == 0:
        raise ValueError(f"{where}: the prompt is empty; it needs at least one sentence.")
    sentences = [prompt] if np.ndim(prompt[0]) == 0 else prompt
    between = [] if separator is None else [np.array([separator], dtype=np.int64)]
    parts = [np.array([bos], dtype=np.int64)]
    for i, sentence in enumerate(sentences):
        parts += [token_array(sentence, vocab_size, f"{where}, prompt sentence {i}"), *between]
    return np.concatenate(parts)


def _grow(
    prompts, prompt_of, endings, endings_of, batch_tokens, share_prompts
) -> tuple[list[_Tree], dict[tuple[int, int], int]]:
    """Trees of all prompts, and the slot of each (prompt, ending); prompts of many endings are repeated."""
    wanted: list[dict[int, None]] = [{} for _ in prompts]  # insertion-ordered sets of endings
    for p, pair in zip(prompt_of, endings_of, strict=True):
        wanted[p].update(dict.fromkeys(pair))
    trees: list[_Tree] = []
    pair_slot: dict[tuple[int, int], int] = {}
    for p, prompt in enumerate(prompts):
        tree = None
        longest = min(batch_tokens, len(prompt) + max(len(prompt), TREE_ENDING_TOKENS))
        for e in wanted[p]:
            slot = pair_slot[p, e] = len(prompts) + len(pair_slot)
            if tree is None or not share_prompts or tree.length + len(endings[e]) > longest:
                tree = _Tree(prompt, [], [], p if tree is None else -1, len(prompt))
                trees.append(tree)
            tree.endings.append(endings[e])
            tree.slots.append(slot)
            tree.length += len(endings[e])
    return trees, pair_slot


# --- trees -> sums
# -------------------------------------------------------------------------------------------


def _score_batch(model, trees: list[_Tree], sums: np.ndarray, device: torch.device) -> None:
    """Adds the log-likelihoods of a batch of trees to their slots of `sums`."""
    shape = (len(trees), max(t.length for t in trees))
    tokens = np.zeros(shape, dtype=np.int64)  # padding holds token 0; nothing that is scored sees it
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)  # -1 padding, 0 prompt, k the k-th ending
    sources, targets, slots = [], [], []  # one entry a scored token: flat index of the logits that predict it
    for row, tree in enumerate(trees):
        size = len(tree.prompt)
        base = row * shape[1]
        tokens[row, :size] = tree.prompt
        positions[row, :size] = np.arange(size)
        segments[row, :size] = 0
        if tree.prompt_slot >= 0:
            sources.append(base + np.arange(size - 1))
            targets.append(tree.prompt[1:])
            slots.append(np.full(size - 1, tree.prompt_slot))
        start = size
        for k, (ending, slot) in enumerate(zip(tree.endings, tree.slots, strict=True), start=1):
            stop = start + len(ending)
            tokens[row, start:stop] = ending
            positions[row, start:stop] = size + np.arange(len(ending))
            segments[row, start:stop] = k
            # The prompt's last token predicts the first token of every ending.
            sources.append(base + np.concatenate(([size - 1], np.arange(start, stop - 1))))
            targets.append(ending)
            slots.append(np.full(len(ending), slot))
            start = stop

    input_ids = torch.from_numpy(tokens).to(device)
    if max(len(t.endings) for t in trees) == 1:
        # Plain causal rows, padded on the right: no mask is needed and the fast causal kernels apply.
        attention_mask = None
        position_ids = torch.arange(shape[1], device=device).expand(shape)
    else:
        attention_mask = tree_mask(torch.from_numpy(segments).to(device), next(model.parameters()).dtype)
        position_ids = torch.from_numpy(positions).to(device)
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).logits
    logps = _token_logps(logits, np.concatenate(sources), np.concatenate(targets))
    np.add.at(sums, np.concatenate(slots), logps)


def tree_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask [B, 1, T, T] of trees: 0 where visible, the dtype's minimum elsewhere.

    Args:
        segments: int64 [B, T]: 0 for the prompt, k for the k-th ending, -1 for padding on the right.
        dtype: the model's; sdpa wants mask and queries alike. Additive rather than bool, because eager
            attention adds the mask to the scores as it is.
    """
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible = visible.tril()  # a padding token sees the prompt and itself, so no row is empty
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _token_logps(logits: torch.Tensor, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log p of tokens `targets` [N] under `logits` [B, T, V] at flat positions `sources` [N]: float64 [N]."""
    flat = logits.reshape(-1, logits.shape[-1])
    where = torch.from_numpy(sources).to(logits.device)
    what = torch.from_numpy(targets).to(logits.device)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = []
    for at, token in zip(where.split(LOGIT_ROWS), what.split(LOGIT_ROWS), strict=True):
        rows = flat[at].to(dtype)
        parts.append(rows.gather(1, token[:, None])[:, 0] - rows.logsumexp(dim=1))
    return torch.cat(parts).double().cpu().numpy()


# --- what other scores share
# ---------------------------------------------------------------------------------


def token_array(tokens: Any, vocab_size: int, where: str) -> np.ndarray:
    """`tokens` as a new int64 array [n]; ValueError naming `where` if empty, not integers or out of range."""
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"{where}: expected a one-dimensional array of tokens, got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{where}: no tokens; an empty sequence cannot be scored.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{where}: tokens must be integers, got {array.dtype}.")
    array = array.astype(np.int64)
    low, high = array.min(), array.max()
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{where}: token {wrong} is outside the model's vocabulary of {vocab_size} tokens; "
            "were the units made by the tokenizer (and merges) that the model was trained on?"
        )
    return array


def model_limits(model: torch.nn.Module) -> tuple[int, int | None]:
    """(vocabulary size, max_position_embeddings or None) of a model, nested configs included."""
    config = model.config.get_text_config()
    return model.get_input_embeddings().weight.shape[0], getattr(config, "max_position_embeddings", None)


def takes_tree_mask(model: torch.nn.Module) -> bool:
    """Whether the model's attention obeys a [B, 1, T, T] mask: sdpa or eager, full attention in every layer.

    Flash attention ignores such masks; a sliding-window layer would lose its window under one.
    """
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        getattr(model, "_supports_sdpa", False)
        and config._attn_implementation in ("sdpa", "eager")
        and set(layer_types) == {"full_attention"}
        and (bool(getattr(config, "layer_types", None)) or getattr(config, "sliding_window", None) is None)
    )


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of rows, longest first, in batches of at most `batch_tokens` tokens after padding.

    Longest first, so that a batch which does not fit into memory fails at once and not at the end. Equal
    lengths keep their order, so the batches are the same in every run.

    >>> [b.tolist() for b in length_batches([3, 9, 2, 4], batch_tokens=10)]
    [[1], [3, 0], [2]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


@contextlib.contextmanager
def evaluating(model: torch.nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Eval and inference mode on `device` (None: the model's); modes and device are put back afterwards."""
    home = next(model.parameters()).device
    device = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if device != home:
            model.to(device)
        with torch.inference_mode():
            yield device
    finally:
        for module, training in modes:
            module.training = training
        if device != home:
            model.to(home)
