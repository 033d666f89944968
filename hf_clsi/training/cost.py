"""The shape of a model becomes what its training costs: FLOPs a token, GPU-hours, memory, bytes on disk.

FLOPs of training, a token (forward and twice as much backward; activation checkpointing adds one forward,
which model FLOPs do not count):

    6 N + 12 L A C

N: parameters that a token is multiplied with, L: layers, A: width of all query heads (heads x head size), C:
keys that a token attends to, on average. 6 N is Kaplan et al. 2020 (arXiv 2001.08361, section 2.1). The
second term is that of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B: 12 L H Q T), but for C:
PaLM, and most who report MFU, put the whole row T there, as if nothing were masked. Here C is what causal
attention needs, (T + 1) / 2, and less where documents are kept apart (`mean_context`); our MFU is therefore
the lower of the two for the same speed. N counts the head, which multiplies, but no table that is only looked
up: with tied embeddings, all parameters. Norms, biases, activation functions and the softmax are left out of
the FLOPs, as usual.

What is exact and what is not: parameters, FLOPs and bytes of weights, gradients and optimizer state are
counted; activations are an estimate (`activation_bytes_per_token` says of what).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

STRATEGIES = ("ddp", "fsdp2")
BYTES_PER_UNIT = 2  # uint16, in Parquet (before compression) and in memory
MASTER = 4  # weights, gradients and both moments of AdamW are float32, whatever the forward pass runs in


@dataclass(frozen=True)
class Gpu:
    """A device: dense bfloat16 FLOP/s (tensor cores, float32 sums, without sparsity) and bytes of memory."""

    name: str
    peak_flops: float
    memory: int


def _gpu(name: str, tera: float, gib: int) -> Gpu:
    return Gpu(name, tera * 1e12, gib * 2**30)


#: Name -> device. What NVIDIA prints from Ampere on is mostly with sparsity, and twice these.
GPUS: dict[str, Gpu] = {
    "a100": _gpu("A100", 312, 80),  # NVIDIA A100 80GB datasheet (2021)
    "h100": _gpu("H100", 989, 80),  # NVIDIA H100 datasheet, SXM5 (PCIe: 756)
    "h200": _gpu("H200", 989, 141),  # NVIDIA H200 datasheet, SXM: the same chip with more memory
    "b200": _gpu("B200", 2250, 180),  # NVIDIA HGX B200 datasheet
    "l40s": _gpu("L40S", 362, 48),  # NVIDIA L40S datasheet
    "mi300x": _gpu("MI300X", 1307, 192),  # AMD Instinct MI300X datasheet
    "rtx4090": _gpu("RTX 4090", 165, 24),  # NVIDIA Ada architecture whitepaper, appendix A, float32 sums
}


def gpu(name: str | Gpu) -> Gpu:
    """A device by name.

    Raises:
        ValueError: no such device; the message lists them.
    """
    if isinstance(name, Gpu):
        return name
    if name.lower() not in GPUS:
        raise ValueError(
            f"unknown GPU '{name}'; choose from {', '.join(GPUS)}, or give a Gpu(name, peak_flops, memory)."
        )
    return GPUS[name.lower()]


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides its cost. Parameters are counted on the model itself, built without memory.

    Attributes:
        model_type: of the decoder.
        parameters: all, tied ones once.
        embedding_parameters: of the tables of tokens and positions, and of an untied head.
        lookup_parameters: of those, what no token is multiplied with: tables that are not the head too.
        layers, hidden_size, intermediate_size, vocab_size: as in its config.
        attention_width: of all query heads of a layer; kv_width: of all key heads.
    """

    model_type: str
    parameters: int
    embedding_parameters: int
    lookup_parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_width: int
    kv_width: int

    @property
    def body_parameters(self) -> int:
        """Without embeddings and head."""
        return self.parameters - self.embedding_parameters

    @property
    def matmul_parameters(self) -> int:
        """N of the formula."""
        return self.parameters - self.lookup_parameters


def model_shape(text_config: Mapping[str, Any], num_units: int = 2048, num_merges: int = 0) -> ModelShape:
    """The shape of a ClsiForCausalLM around a decoder.

    Args:
        text_config: keyword arguments of the decoder's config, as in `ModelSettings`.
        num_units, num_merges: the vocabulary (and bos, eos, pad).

    >>> from hf_clsi.configuration_clsi import SIZES
    >>> round(model_shape(SIZES["1b"]["text_config"]).parameters / 1e6, 1)
    977.3
    """
    return _model_shape(json.dumps(dict(text_config), sort_keys=True), num_units, num_merges)


@lru_cache(maxsize=64)
def _model_shape(text_config: str, num_units: int, num_merges: int) -> ModelShape:
    import torch

    from ..configuration_clsi import ClsiConfig
    from ..modeling_clsi import ClsiForCausalLM

    config = ClsiConfig(text_config=json.loads(text_config), num_units=num_units, num_merges=num_merges)
    with torch.device("meta"):
        model = ClsiForCausalLM(config)
    head = model.get_output_embeddings().weight
    tables = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
    }
    looked_up = sum(size for key, size in tables.items() if key != id(head))
    decoder = config.text_config
    heads = decoder.num_attention_heads
    head_size = getattr(decoder, "head_dim", None) or decoder.hidden_size // heads
    kv_heads = getattr(decoder, "num_key_value_heads", None) or heads
    return ModelShape(
        model_type=decoder.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=looked_up + head.numel(),
        lookup_parameters=looked_up,
        layers=decoder.num_hidden_layers,
        hidden_size=decoder.hidden_size,
        # GPT-2 and its like leave it out where it is four times the hidden size.
        intermediate_size=getattr(decoder, "intermediate_size", None) or 4 * decoder.hidden_size,
        vocab_size=config.vocab_size,
        attention_width=heads * head_size,
        kv_width=kv_heads * head_size,
    )


def mean_context(max_length: int, document_length: float | np.ndarray | None = None) -> float:
    """Keys that a token attends to on average, itself among them.

    Args:
        max_length: tokens of a row.
        document_length: None: documents are not kept apart, or fill their rows. A number: isolated documents
            that all have it. An array: their lengths; long documents weigh by their square, so that the mean
            length alone gives too little.

    >>> mean_context(8), mean_context(8, 3), mean_context(8, np.array([1, 5]))
    (4.5, 2.0, 2.6666666666666665)
    """
    if document_length is None:
        return (max_length + 1) / 2
    lengths = np.minimum(np.atleast_1d(np.asarray(document_length, dtype=np.float64)), max_length)
    if not len(lengths) or lengths.min() <= 0:
        raise ValueError(f"lengths of documents must be positive, got {document_length!r}.")
    return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def training_flops_per_token(shape: ModelShape, context: float) -> float:
    """6 N + 12 L A C; see the module. `context`: `mean_context`, or the length of a row for PaLM's figure."""
    return 6 * shape.matmul_parameters + attention_flops_per_token(shape, context)


def attention_flops_per_token(shape: ModelShape, context: float) -> float:
    """12 L A C: the second term alone."""
    return 12 * shape.layers * shape.attention_width * context


def tokens_per_second(flops_per_token: float, device: str | Gpu, mfu: float) -> float:
    """What one GPU does at a share of its peak."""
    _check_mfu(mfu)
    return gpu(device).peak_flops * mfu / flops_per_token


def mfu(tokens_per_second: float, flops_per_token: float, device: str | Gpu) -> float:
    """Model FLOPs utilization of one GPU from its speed: needed FLOP/s over peak FLOP/s."""
    return tokens_per_second * flops_per_token / gpu(device).peak_flops


def gpu_hours(tokens: float, flops_per_token: float, device: str | Gpu, mfu: float) -> float:
    """Hours of one GPU for so many tokens, without starts, checkpoints and waiting."""
    return tokens / tokens_per_second(flops_per_token, device, mfu) / 3600


def _check_mfu(mfu: float) -> None:
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share of the peak, above 0 and at most 1, got {mfu}.")


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU.

    Attributes:
        weights, gradients, optimizer: float32 (AdamW: two moments); exact.
        working: copies in flight. DDP: its buckets, a second copy of the gradients (with more than one
            process), and the bfloat16 weights that autocast keeps for the backward pass. FSDP2: the gathered
            weights of two blocks (one at work, one on its way) and of the embeddings, and the gradients of
            one block. An estimate.
        activations: of one forward; an estimate.
    """

    weights: int
    gradients: int
    optimizer: int
    working: int
    activations: int

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.state + self.working + self.activations


def activation_bytes_per_token(
    shape: ModelShape, max_length: int, dtype: str = "bfloat16", checkpointing: bool = False
) -> int:
    """What the backward pass needs kept of every token of a forward: an ESTIMATE, for Llama and Qwen2.

    Of a layer, under bfloat16 autocast, 32 H + 2 K + 8 I bytes (H: hidden, K: key heads, I: intermediate); in
    float32, 32 H + 8 K + 16 I. These were counted on the CPU, by what autograd saves
    (tests/training/test_cost.py counts again); a compiled model keeps less, other kernels keep other things.
    Besides: 12 H, 14 a token of the vocabulary (logits twice, probabilities, gradient), and 4 a key for the
    mask of isolated documents. With checkpointing: the float32 input of every layer, 4 H, and one layer in
    full, the one that is being computed anew.
    """
    hidden, key, inner = shape.hidden_size, shape.kv_width, shape.intermediate_size
    layer = 32 * hidden + 2 * key + 8 * inner if dtype == "bfloat16" else 32 * hidden + 8 * key + 16 * inner
    layers = 4 * hidden * shape.layers + layer if checkpointing else layer * shape.layers
    return layers + 12 * hidden + 14 * shape.vocab_size + 4 * max_length


def memory_per_gpu(
    shape: ModelShape,
    tokens_per_forward: int,
    max_length: int,
    *,
    gpus: int = 1,
    strategy: str = "ddp",
    dtype: str = "bfloat16",
    checkpointing: bool = False,
) -> TrainingMemory:
    """Bytes that training takes on each of `gpus` devices.

    Args:
        tokens_per_forward: of one device, pads included: rows x max_length.
        strategy: "ddp" (every GPU holds everything) or "fsdp2" (each holds its share of weights, gradients
            and optimizer state, and gathers one block at a time).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got '{strategy}'.")
    if gpus < 1:
        raise ValueError(f"gpus must be at least 1, got {gpus}.")
    half = 2 if dtype == "bfloat16" else 4
    if strategy == "ddp":
        share = shape.parameters
        working = (MASTER * share if gpus > 1 else 0) + (half * share if half == 2 else 0)
    else:
        share = -(-shape.parameters // gpus)
        block = -(-shape.body_parameters // shape.layers)
        working = half * (3 * block + shape.embedding_parameters)
    return TrainingMemory(
        weights=MASTER * share,
        gradients=MASTER * share,
        optimizer=2 * MASTER * share,
        working=working,
        activations=tokens_per_forward * activation_bytes_per_token(shape, max_length, dtype, checkpointing),
    )


def model_bytes(shape: ModelShape) -> int:
    """A saved model: safetensors in float32, tied weights once (without its header, some kB)."""
    return MASTER * shape.parameters


def checkpoint_bytes(shape: ModelShape) -> int:
    """A checkpoint to go on from: the model and AdamW's two moments."""
    return 3 * MASTER * shape.parameters


def data_bytes(units: int) -> int:
    """Units as uint16; the offsets of sentences and stories (8 bytes each) come on top."""
    return BYTES_PER_UNIT * units
