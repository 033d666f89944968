"""Sizes with a name: what all recipes share at that size. `recipe("interleave", SIZES["1b"])` is complete.

`360m` and `1b` are the paper's (arXiv 2512.01865): 100 parts of the budget are 100k steps of 614,400 units;
Adam(0.9, 0.98), weight decay 0.1, clip 1.0, 5e-4 after 5% of warm-up, then linear decay; 2,048 units a row;
the bodies of Qwen2-0.5B and Llama-3.2-1B with their text weights. No recipe has been run to its end at these
sizes: `rows_per_forward` follows from the memory of activations (below), not from a measurement.
`tiny`, `small` and `gpu` are those of `hf-clsi reproduce` (experiment/presets.py).
"""

from __future__ import annotations

import copy

from ..configuration_clsi import SIZES as CONFIGS
from .recipes import BatchSettings, ModelSettings, OptimizerSettings, TrainingPreset

PAPER_BUDGET = 61_440_000_000
PAPER_STEP = 614_400


def _llama(hidden: int, layers: int, heads: int, intermediate: int, positions: int, init: float, dtype: str):
    return ModelSettings(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": intermediate,
            "max_position_embeddings": positions,
            "initializer_range": init,
            "tie_word_embeddings": True,
        },
        dtype,
    )


def _paper(size: str, text_model: str, rows_per_forward: int) -> TrainingPreset:
    return TrainingPreset(
        budget_tokens=PAPER_BUDGET,
        model=ModelSettings(
            copy.deepcopy(CONFIGS[size]["text_config"]), dtype="bfloat16", initialize_from=text_model
        ),
        optimizer=OptimizerSettings(
            learning_rate=5e-4, betas=(0.9, 0.98), weight_decay=0.1, max_grad_norm=1.0, warmup_share=0.05
        ),
        batch=BatchSettings(tokens_per_step=PAPER_STEP, max_length=2048, rows_per_forward=rows_per_forward),
    )


# Rows of 2,048 in one forward. Under autocast a Llama layer keeps about 34 H + 8 I bytes a token for its
# backward pass (H hidden, I intermediate): 360m 24 x 69 kB = 1.7 MB, 1b 16 x 135 kB = 2.2 MB a token, so 3.4
# and 4.4 GB a row; weights, gradients and AdamW's moments in float32 take 16 bytes a parameter, 6 and 16 GB.
# Eight rows then need about 33 and 51 GB and leave an 80 GB device room for logits and workspace.
#: Name -> settings.
SIZES: dict[str, TrainingPreset] = {
    "tiny": TrainingPreset(
        budget_tokens=1_800_000,
        model=_llama(96, 2, 4, 256, 512, 0.08, "float32"),
        optimizer=OptimizerSettings(learning_rate=8e-3),
        batch=BatchSettings(tokens_per_step=800, max_length=256, separator="bos"),
    ),
    "small": TrainingPreset(
        budget_tokens=4_800_000,
        model=_llama(128, 2, 4, 384, 512, 0.08, "float32"),
        optimizer=OptimizerSettings(learning_rate=3e-3),
        batch=BatchSettings(tokens_per_step=800, max_length=256, separator="bos"),
    ),
    "gpu": TrainingPreset(
        budget_tokens=400_000_000,
        model=_llama(512, 12, 8, 1408, 2048, 0.02, "bfloat16"),
        optimizer=OptimizerSettings(learning_rate=1e-3),
        batch=BatchSettings(tokens_per_step=65_536, max_length=2048, separator="bos"),
    ),
    "360m": _paper("360m", "Qwen/Qwen2-0.5B", rows_per_forward=8),
    "1b": _paper("1b", "meta-llama/Llama-3.2-1B", rows_per_forward=8),
}


def size(name: str) -> TrainingPreset:
    """The settings of a size, in dicts of their own.

    Raises:
        ValueError: no such size; the message lists them.
    """
    if name not in SIZES:
        raise ValueError(f"unknown size '{name}'; choose from {', '.join(SIZES)}.")
    return copy.deepcopy(SIZES[name])
