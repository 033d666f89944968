"""Made-up results of a whole experiment, deterministic, of the size and shape that `reproduce` writes."""

import copy

import numpy as np
import pytest

RECIPES = [
    "baseline-en",
    "baseline-fr",
    "baseline-en-fr",
    "interleave",
    "interleave-ft",
    "interleave-unaligned",
]
DIRECTIONS = [("en", "en"), ("fr", "fr"), ("en", "fr"), ("fr", "en")]
STAGES = {
    "baseline-en": [("en", "monolingual", 900_000, {"en": 1.0})],
    "baseline-fr": [("fr", "monolingual", 300_000, {"fr": 1.0})],
    "baseline-en-fr": [("mixed", "mixed", 1_200_000, {"en": 0.75, "fr": 0.25})],
    "interleave": [
        ("en", "monolingual", 780_000, {"en": 1.0}),
        ("interleaved", "interleaved", 240_000, {"en": 0.5, "fr": 0.5}),
    ],
    "interleave-ft": [
        ("en", "monolingual", 600_000, {"en": 1.0}),
        ("interleaved", "interleaved", 240_000, {"en": 0.5, "fr": 0.5}),
        ("fine-tune", "mixed", 360_000, {"en": 0.5, "fr": 0.5}),
    ],
    "interleave-unaligned": [
        ("en", "monolingual", 780_000, {"en": 1.0}),
        ("interleaved", "unaligned", 240_000, {"en": 0.5, "fr": 0.5}),
    ],
}
# Accuracy on strict topic-cloze in EN, FR, EN->FR, FR->EN.
LEVELS = {
    "baseline-en": (0.70, 0.50, 0.49, 0.51),
    "baseline-fr": (0.49, 0.72, 0.50, 0.48),
    "baseline-en-fr": (0.692, 0.758, 0.505, 0.532),
    "interleave": (0.656, 0.671, 0.667, 0.657),
    "interleave-ft": (0.69, 0.74, 0.65, 0.645),
    "interleave-unaligned": (0.61, 0.60, 0.515, 0.47),
}


def _wilson(share, n, z=1.96):
    middle, spread = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [(middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)]


def _rows(random):
    n = 864
    for recipe in RECIPES:
        for task, keep in (("storycloze", 0.35), ("topiccloze", 1.0)):
            for level, (prompt, ending) in zip(LEVELS[recipe], DIRECTIONS, strict=True):
                for holdout, ease in (("strict", 1.0), ("tuple", 1.8)):
                    for span, sharp in (("whole", 0.5), ("ending", 0.7), ("gain", 1.0)):
                        for normalization in ("mean", "sum"):
                            share = 0.5 + (level - 0.5) * keep * ease * sharp + random.normal(0, 0.008)
                            correct = round(min(share, 0.97) * n)
                            low, high = _wilson(correct / n, n)
                            wide = 0.012 + 0.01 * random.random()
                            yield {
                                "recipe": recipe,
                                "task": task,
                                "holdout": holdout,
                                "prompt_language": prompt,
                                "ending_language": ending,
                                "n": n,
                                "correct": correct,
                                "accuracy": correct / n,
                                "ci95": [low, high],
                                "ci95_topics": [low - wide, high + wide],
                                "span": span,
                                "normalization": normalization,
                            }


def _comparisons(rows):
    lead = {"span": "gain", "normalization": "sum"}
    found = {
        (r["recipe"], r["task"], r["holdout"], r["prompt_language"], r["ending_language"]): r
        for r in rows
        if all(r[key] == value for key, value in lead.items())
    }
    pairs = [("interleave", "baseline-en-fr"), ("interleave", "interleave-unaligned")]
    for a, b in pairs:
        for holdout in ("strict", "tuple"):
            for task in ("topiccloze", "storycloze"):
                for prompt, ending in DIRECTIONS:
                    one, other = (found[recipe, task, holdout, prompt, ending] for recipe in (a, b))
                    difference = one["accuracy"] - other["accuracy"]
                    only_a = 150 + round(432 * difference)
                    only_b = only_a - round(864 * difference)
                    score = difference * 864 / (only_a + only_b) ** 0.5
                    yield lead | {
                        "a": a,
                        "b": b,
                        "task": task,
                        "holdout": holdout,
                        "prompt_language": prompt,
                        "ending_language": ending,
                        "n": 864,
                        "difference": difference,
                        "ci95": [difference - 0.04, difference + 0.04],
                        "ci95_topics": [difference - 0.055, difference + 0.055],
                        "a_only": only_a,
                        "b_only": only_b,
                        "p_value": float(min(1.0, 2 * np.exp(-0.5 * score**2))),
                        "test": "mcnemar",
                    }


def _training(random):
    for recipe in RECIPES:
        log, seen, floor = [], 0, 4.4
        for index, (stage, mode, tokens, _) in enumerate(STAGES[recipe]):
            jump = 0.0 if index == 0 else (0.55 if mode != "mixed" else 0.12)
            for step in range(1, tokens // 8192 + 1):
                seen += 8192
                decay = 2.5 * np.exp(-seen / 60_000) + 1.0 * np.exp(-seen / 500_000)
                bump = jump * np.exp(-step / 12)
                log.append(
                    {
                        "stage": stage,
                        "step": step,
                        "tokens": seen,
                        "loss": float(floor - 1.0 + decay + bump + random.normal(0, 0.03)),
                        "learning_rate": 3e-3,
                    }
                )
        yield recipe, log


def _alignment(random):
    tops = dict(zip(RECIPES, (0.01, 0.01, 0.03, 0.17, 0.14, 0.05), strict=True)) | {"untrained": 0.015}
    for data, n, scale in (("stories", 331, 1.0), ("parallel-prompts", 331, 0.3)):
        for recipe, top in tops.items():
            for layer in range(5):
                gap = scale * top * (0.25 + 0.75 * np.sin(0.8 * layer)) + random.normal(0, 0.003)
                retrieval = 1 / n + 0.4 * max(gap, 0)
                yield {
                    "recipe": recipe,
                    "data": data,
                    "layer": layer,
                    "n": n,
                    "cosine": 0.6 + gap,
                    "random_cosine": 0.6,
                    "gap": gap,
                    "gap_ci95": [gap - 0.012, gap + 0.012],
                    "centred_cosine": 1.5 * gap,
                    "retrieval_at_1": retrieval,
                    "retrieval_at_1_ci95": _wilson(retrieval, n),
                    "chance": 1 / n,
                }


@pytest.fixture(scope="session")
def fixed_results():
    """For tests that only read; `results` is a copy that a test may change."""
    return _results()


@pytest.fixture
def results(fixed_results):
    return copy.deepcopy(fixed_results)


def _results():
    random = np.random.default_rng(7)
    rows = list(_rows(random))
    return {
        "headline": {"holdout": "strict", "span": "gain", "normalization": "sum"},
        "settings": {
            "preset": "tiny",
            "seed": 0,
            "versions": {"hf_clsi": "0.1.0", "torch": "2.11.0"},
            "units": {"num_units": 128, "frame_rate_hz": 12.5, "num_merges": 893, "deduplicate": True},
            "model": {"parameters": 322_464, "layers": 4, "hidden_size": 96},
            "data": {"train_stories": 12_000, "topics": 24},
        },
        "rows": rows,
        "comparisons": list(_comparisons(rows)),
        "alignment": list(_alignment(random)),
        "training": dict(_training(random)),
    }


@pytest.fixture
def ledger():
    def amounts(tokens, shares, factor):
        return {language: round(tokens * share * factor) for language, share in shares.items()}

    recipes = {}
    for recipe, stages in STAGES.items():
        recipes[recipe] = {
            "stages": [
                {
                    "stage": stage,
                    "mode": mode,
                    "steps": tokens // 8192,
                    "epochs": {language: tokens * share / 400_000 for language, share in shares.items()},
                    "tokens": amounts(tokens, shares, 1),
                    "units": amounts(tokens, shares, 3.6),
                    "seconds": {name: units / 12.5 for name, units in amounts(tokens, shares, 3.6).items()},
                }
                for stage, mode, tokens, shares in stages
            ]
        }
    return {
        "recipes": recipes,
        "matched": [
            {"a": "baseline-en-fr", "b": "interleave-ft", "total_equal": True, "languages_equal": True}
        ],
    }
