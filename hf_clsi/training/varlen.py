"""Packed documents and where they begin become attention inside each document, by torch's own flash kernel.

transformers' `flash_attention_2` needs a package that must be compiled; since 2.11 torch brings the kernel
itself (`torch.nn.attention.varlen`). `register_varlen_attention` makes it an attention implementation of
transformers under the name "varlen". It never builds a mask of T x T, and it does no work across documents.

Letters: B rows, T tokens a row, N = B * T tokens in all, H heads, D size of a head, M documents.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..modeling_clsi import ISOLATING_DECODERS

NAME = "varlen"

# Decoders that hand position_ids and the borders of documents on to their attention, shown to isolate packed
# documents by it (tests/test_attention.py). GPT-Neo has attention of its own; Gemma 2 caps its scores, which
# the kernel of torch cannot.
VARLEN_DECODERS = ISOLATING_DECODERS - {"gemma2", "gpt_neo"}

_HALF = (torch.float16, torch.bfloat16)


def register_varlen_attention() -> None:
    """Makes "varlen" known to transformers, for `set_attn_implementation`; again changes nothing."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, varlen_mask)


def varlen_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """No mask for rows that stand for themselves; that of sdpa where there is padding or a cache.

    Without a mask `varlen_attention` finds the documents by their positions.
    """
    if attention_mask is None and q_length == kv_length and isinstance(q_offset, int) and not q_offset:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset,
                     attention_mask=attention_mask, **kwargs)  # fmt: skip


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, as transformers calls an attention function.

    Args:
        query, key, value: `[B, H, T, D]` (key and value may have fewer heads).
        attention_mask: of padding or a cache; with one, this is sdpa.
        cu_seq_lens_q, max_length_q: borders of the documents among the N tokens, `[M + 1]` int32, and the
            length of the longest: the collator gives them with `return_flash_attn_kwargs`.
        position_ids: `[B, T]`; without borders, a document begins in every row, and where the position does
            not go on by 1.

    Returns:
        (`[B, T, H, D]`, None).

    Raises:
        ValueError: dropout or capped scores.
        RuntimeError: neither borders nor positions, so that documents could leak into each other.
    """
    if attention_mask is not None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            softcap=softcap,
            **kwargs,
        )
    if dropout or softcap is not None:
        raise ValueError(
            f"the attention 'varlen' has neither dropout nor capped scores, got {dropout=}, {softcap=}; "
            "use 'sdpa' or 'eager'."
        )
    rows, heads, length, size = query.shape
    if cu_seq_lens_q is None:
        cu_seq_lens_q, max_length_q = _borders(position_ids, rows, length), length
    elif max_length_q is None:
        max_length_q = rows * length  # an upper bound is enough
    if torch.is_autocast_enabled(query.device.type):  # positions are added in float32 there
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (
        states.transpose(1, 2).reshape(rows * length, -1, size) for states in (query, key, value)
    )
    scale = size**-0.5 if scaling is None else scaling
    if query.is_cuda and query.dtype in _HALF:
        from torch.nn.attention.varlen import varlen_attn

        repeats = heads // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
        attended = varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
                               scale=scale, window_size=window)  # fmt: skip
    else:
        attended = _document_by_document(query, key, value, cu_seq_lens_q, scale, sliding_window)
    return attended.view(rows, length, heads, size), None


def _borders(position_ids: torch.Tensor | None, rows: int, length: int) -> torch.Tensor:
    """Where documents begin among the N tokens, and N: `[M + 1]` int32."""
    if position_ids is None:
        raise RuntimeError(
            "the attention 'varlen' was given neither cu_seq_lens_q nor position_ids: this decoder does not "
            "hand them on, and packed documents would leak into each other. Use 'sdpa'."
        )
    position_ids = position_ids.expand(rows, length)
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff(dim=1) != 1
    starts = begins.reshape(-1).nonzero().view(-1)
    return torch.cat([starts, starts.new_full((1,), rows * length)]).to(torch.int32)


@torch.compiler.disable
def _document_by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """The same where there is no such kernel: one call of sdpa a document, `[N, H, D]`."""
    borders = borders.tolist()
    lengths = [stop - start for start, stop in pairwise(borders)]
    attended = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        n, mask = q.shape[0], None
        if sliding_window is not None and n > sliding_window:
            distance = torch.arange(n, device=q.device)[:, None] - torch.arange(n, device=q.device)
            mask = (distance >= 0) & (distance < sliding_window)
        attended.append(
            F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )[0].transpose(0, 1)
        )
    return torch.cat(attended)
