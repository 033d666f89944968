"""The recipes: the paper's table to the last token, and settings that contradict themselves are refused."""

import json
from dataclasses import replace

import pytest

from hf_clsi.training.recipes import (
    RECIPES,
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    StageSettings,
    TrainingPreset,
    recipe,
)

# 100k steps of 614,400 units, the EN+FR row of the paper.
PAPER = TrainingPreset(
    budget_tokens=61_440_000_000,
    model=ModelSettings({"model_type": "llama", "hidden_size": 16}),
    optimizer=OptimizerSettings(),
    batch=BatchSettings(),
)


def read(name):
    """Tokens of a recipe in all and of French, where a drawn sentence is as often French as English."""
    plan = recipe(name, PAPER)
    total = sum(plan.tokens(parts) for stage in plan.stages for parts in stage.parts.values())
    french = sum(
        plan.tokens(stage.parts.get("fr", 0)) + plan.tokens(stage.parts.get("*", 0)) // 2
        for stage in plan.stages
    )
    return total, french


@pytest.mark.parametrize(
    ("name", "total", "french"),
    [
        ("baseline-en", 46_080_000_000, 0),
        ("baseline-fr", 15_360_000_000, 15_360_000_000),
        ("baseline-en-fr", 61_440_000_000, 15_360_000_000),
        ("interleave", 52_224_000_000, 6_144_000_000),
        ("interleave-ft", 61_440_000_000, 15_360_000_000),
        ("interleave-unaligned", 52_224_000_000, 6_144_000_000),
    ],
)
def test_budgets_are_those_of_the_papers_table(name, total, french):
    assert read(name) == (total, french)
    # 75k, 25k, 100k, 85k, 100k and 85k steps.
    assert total % PAPER.batch.tokens_per_step == 0


def test_stages_of_every_recipe():
    stages = {
        name: [(stage.mode, stage.parts, stage.completes) for stage in recipe(name, PAPER).stages]
        for name in RECIPES
    }
    assert stages == {
        "baseline-en": [("monolingual", {"en": 75}, False)],
        "baseline-fr": [("monolingual", {"fr": 25}, False)],
        "baseline-en-fr": [("mixed", {"en": 75, "fr": 25}, False)],
        "interleave": [("monolingual", {"en": 65}, False), ("interleaved", {"*": 20}, False)],
        "interleave-ft": [
            ("monolingual", {"en": 50}, False),
            ("interleaved", {"*": 20}, False),
            ("alternating", {"en": 15, "fr": 15}, True),
        ],
        "interleave-unaligned": [
            ("monolingual", {"en": 65}, False),
            ("interleaved-unaligned", {"*": 20}, False),
        ],
    }


def test_names_and_what_each_is_matched_with():
    recipes = {name: recipe(name, PAPER, seed=3) for name in RECIPES}
    assert {plan.name: plan.matched_with for plan in recipes.values()} == {
        "baseline-en": None,
        "baseline-fr": None,
        "baseline-en-fr": None,
        "interleave": None,
        "interleave-ft": "baseline-en-fr",
        "interleave-unaligned": "interleave",
    }
    assert all(plan.seed == 3 and plan.languages == ("en", "fr") for plan in recipes.values())


def test_other_languages_take_the_places_of_english_and_french():
    plan = recipe("interleave-ft", PAPER, ["de", "it"])
    assert [stage.parts for stage in plan.stages] == [{"de": 50}, {"*": 20}, {"de": 15, "it": 15}]
    assert plan.matched_with == recipe("baseline-en-fr", PAPER, ["de", "it"]).name == "baseline-de-it"


@pytest.mark.parametrize("budget", range(1, 9))
def test_targets_of_both_languages_add_up_to_any_budget(budget):
    plan = recipe("interleave-ft", replace(PAPER, budget_tokens=budget))
    assert sum(plan.language_targets().values()) == budget


def test_optimizer_and_batches_are_the_papers_by_default():
    assert OptimizerSettings() == OptimizerSettings(
        learning_rate=5e-4,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        max_grad_norm=1.0,
        warmup_share=0.05,
        schedule="stage",
    )
    assert (BatchSettings().tokens_per_step, BatchSettings().max_length) == (614_400, 2048)


def test_preset_reaches_every_recipe_and_can_be_changed():
    changed = PAPER.with_(optimizer=OptimizerSettings(learning_rate=1e-3))
    for name in RECIPES:
        plan = recipe(name, changed)
        assert plan.optimizer.learning_rate == 1e-3
        assert plan.model == PAPER.model and plan.batch == PAPER.batch
    assert PAPER.optimizer.learning_rate == 5e-4


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json(name):
    plan = recipe(name, PAPER, seed=2)
    assert Recipe.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_unknown_recipe_is_refused_with_those_that_there_are():
    with pytest.raises(
        ValueError, match="unknown recipe 'interleaved'; choose from baseline-en, baseline-fr"
    ):
        recipe("interleaved", PAPER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "sentences", "parts": {"en": 1}}, "unknown mode 'sentences'"),
        ({"mode": "mixed", "parts": {}}, "parts must be positive"),
        ({"mode": "mixed", "parts": {"en": 1, "fr": 0}}, "parts must be positive"),
        ({"mode": "mixed", "parts": {"*": 1}}, "does not go with parts"),
        ({"mode": "interleaved", "parts": {"en": 1}}, "does not go with parts"),
        ({"mode": "monolingual", "parts": {"en": 1, "fr": 1}}, "choose 'mixed' or 'alternating'"),
        ({"mode": "interleaved", "parts": {"*": 1}, "completes": True}, "cannot complete per-language"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"stage 'x': .*{message}"):
        StageSettings("x", **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerSettings(schedule="stages"), "schedule must be one of stage, run, got 'stages'"),
        (lambda: OptimizerSettings(warmup_share=5), "0 to 1, got 5"),
        (lambda: BatchSettings(tokens_per_step=0), "tokens_per_step must be at least 1, got 0"),
        (lambda: ModelSettings({}, dtype="float16"), "dtype must be one of float32, bfloat16, got 'float16'"),
        (lambda: recipe("interleave", PAPER, ("en", "en")), "two different codes"),
        (lambda: recipe("interleave", PAPER, seed=-1), "seed must not be negative"),
        (
            lambda: replace(recipe("baseline-en", PAPER), languages=("de", "fr")),
            r"parts for \['en'\], but the languages are de and fr",
        ),
        (
            lambda: replace(
                recipe("interleave", PAPER), stages=(StageSettings("a", "monolingual", {"en": 1}),) * 2
            ),
            "stages with different names",
        ),
    ],
)
def test_wrong_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
