"""Turns a model and aligned sentences of two languages into similarity measures, one record a layer.

A sentence runs alone as `[bos] tokens`; its vector at a layer is the mean of that layer's hidden states over
its own tokens, BOS left out. What the measures say, and what they are invariant to:

- `cosine`: mean over aligned pairs. Alone it misleads: hidden states of a decoder share a large common
  component (Ethayarajh 2019, arXiv 1909.00512), so any two sentences are similar, in an untrained model too.
- `random_cosine`: exact mean over all pairs i != j. `gap` = cosine - random_cosine: what alignment adds.
- `centred_cosine`: cosine of aligned pairs after each language's own mean vector is taken off, which removes
  both the common component and a constant offset between the languages (Libovický et al. 2020, arXiv
  2004.05160).
- `retrieval_at_1`: share of sentences whose aligned sentence is the nearest of all n in the other language;
  mean of both directions; chance is 1 / n. It is taken on centred vectors, with `retrieval_at_1_raw` on plain
  ones beside it. Centred is the fairer: under plain cosine, sentences near their language's mean are the
  nearest of everything (hubs), which punishes a model for an offset that carries no meaning; and centring
  looks at no pair, so it cannot put alignment in where there is none.

Ties and duplicates: where k candidates tie for nearest and the aligned one is among them, the sentence scores
1 / k (the expectation of a random pick), so a model that maps all sentences to one vector scores chance and
not 100%. Sentences with the same tokens have the same vector and tie for ever: `unique_a` and `unique_b`
count the distinct sentences; where they fall below n, retrieval cannot reach 1.

Axes: n pairs, H hidden size, S bootstrap samples. Layer 0 is the embeddings; the last layer is what
transformers reports as the last hidden state, after the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .likelihood import evaluating, length_batches, model_limits, token_array
from .statistics import percentile_interval, wilson_interval

# Rows of the [n, n] similarity matrix that exist at a time.
QUERY_ROWS = 1024
# Cosines closer than this are ties: float64 rounding is near 1e-16, and float32 hidden states of one sentence
# are computed once, so equal sentences have equal vectors.
TIE = 1e-12


def cross_lingual_alignment(
    model: torch.nn.Module,
    sentences_a: Sequence[Any],
    sentences_b: Sequence[Any],
    *,
    bos_token_id: int,
    batch_tokens: int = 8192,
    seed: int = 0,
    num_bootstrap: int = 1000,
    layers: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measures how alike a model represents aligned sentences of two languages, layer by layer.

    Args:
        model: any causal decoder of transformers, with or without its language-modelling head.
        sentences_a, sentences_b: token arrays, n each (at least 2); sentences_b[i] translates sentences_a[i].
        bos_token_id: the token put before every sentence.
        batch_tokens: tokens of a batch, padding included.
        seed, num_bootstrap: of the interval of the gap (pairs drawn with replacement).
        layers: which layers, 0 the embeddings; negative ones count from the last. None: all.

    Returns:
        One dict a layer: layer, n, unique_a, unique_b, cosine, random_cosine, gap, gap_ci95, centred_cosine,
        retrieval_at_1, retrieval_at_1_ci95 (Wilson, n pairs), retrieval_at_1_a_to_b, retrieval_at_1_b_to_a,
        retrieval_at_1_raw, retrieval_at_1_raw_a_to_b, retrieval_at_1_raw_b_to_a, chance.

    Raises:
        ValueError: unequal numbers of sentences, fewer than two, or a sentence that is empty, out of the
            vocabulary or too long for the model (named by language and index).
    """
    n = len(sentences_a)
    if len(sentences_b) != n or n < 2:
        raise ValueError(
            f"Got {n} and {len(sentences_b)} sentences; aligned sentences come in equal number, at least 2."
        )
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap is {num_bootstrap}; it must be at least 1.")
    vocab_size, max_positions = model_limits(model)
    if not 0 <= bos_token_id < vocab_size:
        raise ValueError(
            f"bos_token_id is {bos_token_id}, outside the model's vocabulary of {vocab_size} tokens."
        )
    unique: list[np.ndarray] = []
    known: dict[bytes, int] = {}
    index = np.empty((2, n), dtype=np.int64)  # which unique sentence stands where
    for side, sentences in enumerate((sentences_a, sentences_b)):
        for i, sentence in enumerate(sentences):
            where = f"sentences_{'ab'[side]}[{i}]"
            tokens = token_array(sentence, vocab_size, where)
            if max_positions is not None and len(tokens) + 1 > max_positions:
                raise ValueError(
                    f"{where}: BOS and {len(tokens)} tokens are more than the model's "
                    f"max_position_embeddings ({max_positions})."
                )
            key = tokens.tobytes()
            if key not in known:
                known[key] = len(unique)
                unique.append(tokens)
            index[side, i] = known[key]

    pooled, layer_numbers = _pooled_states(
        model, unique, bos_token_id, batch_tokens, layers, device, progress
    )
    records = []
    for layer, vectors in zip(layer_numbers, pooled, strict=True):
        record = {
            "layer": layer,
            "n": n,
            "unique_a": len(np.unique(index[0])),
            "unique_b": len(np.unique(index[1])),
        }
        a, b = vectors[index[0]].astype(np.float64), vectors[index[1]].astype(np.float64)
        records.append(record | alignment_of_vectors(a, b, seed=seed, num_bootstrap=num_bootstrap))
    return records


def alignment_of_vectors(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, num_bootstrap: int = 1000
) -> dict[str, Any]:
    """The measures of one layer from its pooled vectors, float64 [n, H]: row i of `a` with row i of `b`."""
    n = len(a)
    unit_a, unit_b = _unit(a), _unit(b)
    aligned = (unit_a * unit_b).sum(axis=1)  # [n]
    # sum over all i, j of cos(a_i, b_j) = (sum_i a_i) . (sum_j b_j): exact without the [n, n] matrix.
    random_cosine = (unit_a.sum(axis=0) @ unit_b.sum(axis=0) - aligned.sum()) / (n * (n - 1))
    centred_a = _unit(a - a.mean(axis=0), scale=a)
    centred_b = _unit(b - b.mean(axis=0), scale=b)
    a_to_b, b_to_a = _retrieval(centred_a, centred_b), _retrieval(centred_b, centred_a)
    raw_a_to_b, raw_b_to_a = _retrieval(unit_a, unit_b), _retrieval(unit_b, unit_a)
    retrieval = (a_to_b + b_to_a) / 2
    return {
        "cosine": float(aligned.mean()),
        "random_cosine": float(random_cosine),
        "gap": float(aligned.mean() - random_cosine),
        "gap_ci95": list(_gap_interval(unit_a, unit_b, aligned, seed, num_bootstrap)),
        "centred_cosine": float((centred_a * centred_b).sum(axis=1).mean()),
        "retrieval_at_1": retrieval,
        "retrieval_at_1_ci95": list(wilson_interval(retrieval * n, n)),
        "retrieval_at_1_a_to_b": a_to_b,
        "retrieval_at_1_b_to_a": b_to_a,
        "retrieval_at_1_raw": (raw_a_to_b + raw_b_to_a) / 2,
        "retrieval_at_1_raw_a_to_b": raw_a_to_b,
        "retrieval_at_1_raw_b_to_a": raw_b_to_a,
        "chance": 1 / n,
    }


def _pooled_states(
    model, sentences, bos, batch_tokens, layers, device, progress
) -> tuple[np.ndarray, list[int]]:
    """Mean-pooled hidden states, float32 [layers, sentences, H], and the numbers of the layers."""
    decoder = model.base_model  # without the head: no logits are computed; a base model is its own
    pooled: np.ndarray | None = None
    numbers: list[int] = []
    lengths = np.array([len(s) for s in sentences])
    with (
        evaluating(model, device) as on,
        tqdm(
            total=int(lengths.sum()), unit="tok", unit_scale=True, desc="align", disable=not progress
        ) as bar,
    ):
        for batch in length_batches(lengths + 1, batch_tokens):
            width = int(lengths[batch].max()) + 1
            tokens = np.zeros((len(batch), width), dtype=np.int64)
            own = np.zeros((len(batch), width), dtype=bool)
            tokens[:, 0] = bos
            for row, i in enumerate(batch):
                tokens[row, 1 : lengths[i] + 1] = sentences[i]
                own[row, 1 : lengths[i] + 1] = True
            # No attention mask: padding stands on the right of a causal model, where nothing that is pooled
            # sees it.
            states = decoder(
                input_ids=torch.from_numpy(tokens).to(on), use_cache=False, output_hidden_states=True
            ).hidden_states
            if pooled is None:
                numbers = _layer_numbers(layers, len(states))
                pooled = np.empty((len(numbers), len(sentences), states[0].shape[-1]), dtype=np.float32)
            mask = torch.from_numpy(own).to(on)[:, :, None]
            count = mask.sum(dim=1)
            for place, number in enumerate(numbers):
                mean = (states[number].float() * mask).sum(dim=1) / count
                pooled[place, batch] = mean.cpu().numpy()
            bar.update(int(lengths[batch].sum()))
    return pooled, numbers


def _layer_numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    for layer in layers:
        if not -count <= layer < count:
            raise ValueError(
                f"layer {layer} does not exist; this model has layers 0 (embeddings) to {count - 1}."
            )
    return [layer % count for layer in layers]


def _unit(vectors: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Rows at length one; a row without direction (zero, or mere rounding beside `scale`) becomes zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    reference = norms if scale is None else np.linalg.norm(scale, axis=1, keepdims=True)
    meaningful = norms > 1e-6 * reference.max(initial=0.0)  # float32 pooling leaves about 1e-7 of noise
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=meaningful)


def _retrieval(queries: np.ndarray, candidates: np.ndarray) -> float:
    """Share of unit rows [n, H] whose own candidate is the nearest; k-fold ties count 1 / k."""
    n = len(queries)
    score = 0.0
    for start in range(0, n, QUERY_ROWS):
        similarity = queries[start : start + QUERY_ROWS] @ candidates.T
        rows = np.arange(len(similarity))
        own = similarity[rows, start + rows][:, None]
        nearer = (similarity > own + TIE).any(axis=1)
        ties = (np.abs(similarity - own) <= TIE).sum(axis=1)  # its own candidate included
        score += float((~nearer / ties).sum())
    return score / n


def _gap_interval(unit_a, unit_b, aligned, seed, num_bootstrap) -> tuple[float, float]:
    """Percentile interval of the gap over pairs drawn with replacement.

    Pair i drawn w_i times: the aligned mean is weighted by w; the mean over random pairs by w_i w_j over i !=
    j, so that two copies of one pair are never taken for a random pair.
    """
    n = len(aligned)
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // max(n, unit_a.shape[1]))
    gaps = []
    for start in range(0, num_bootstrap, rows):
        w = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, num_bootstrap - start)).astype(
            np.float64
        )  # [S, n]
        everything = ((w @ unit_a) * (w @ unit_b)).sum(axis=1)
        own = w**2
        others = n * n - own.sum(axis=1)
        kept = others > 0  # for tiny n a draw may hold one pair only
        random_cosine = (everything - own @ aligned)[kept] / others[kept]
        gaps.append((w @ aligned)[kept] / n - random_cosine)
    return percentile_interval(np.concatenate(gaps))
