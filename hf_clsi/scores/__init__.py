"""Models and token sequences become scores: likelihoods, cloze accuracies, alignment, statistics."""

from .alignment import cross_lingual_alignment
from .cloze import (
    accuracy_outcomes,
    cloze_rows,
    comparison,
    read_item_scores,
    write_item_scores,
)
from .likelihood import NORMALIZATIONS, SPANS, ItemScores, score_items
from .statistics import (
    cluster_bootstrap_interval,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)

__all__ = [
    "NORMALIZATIONS",
    "SPANS",
    "ItemScores",
    "accuracy_outcomes",
    "cloze_rows",
    "cluster_bootstrap_interval",
    "comparison",
    "cross_lingual_alignment",
    "mcnemar_exact",
    "paired_bootstrap",
    "read_item_scores",
    "score_items",
    "wilson_interval",
    "write_item_scores",
]
