"""The recipes: the paper's table to the last token, and settings that contradict themselves are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_clsi.batches.interleave import Switching, draw_document_languages
from hf_clsi.training.recipes import (
    RECIPES,
    BatchSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    StageSettings,
    TrainingPreset,
    recipe,
)
from hf_clsi.training.settings import read_file, with_changes
from hf_clsi.training.sizes import SIZES

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipes" / "three_languages.yaml"

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


# recipe.json of interleave-ft as it was written before stages could switch otherwise.
OLD_FILE = {
    "name": "interleave-ft",
    "languages": ["en", "fr"],
    "budget_tokens": 61_440_000_000,
    "stages": [
        {"name": "en", "mode": "monolingual", "parts": {"en": 50}, "completes": False},
        {"name": "interleaved", "mode": "interleaved", "parts": {"*": 20}, "completes": False},
        {"name": "fine-tuning", "mode": "alternating", "parts": {"en": 15, "fr": 15}, "completes": True},
    ],
    "model": {"text_config": {"model_type": "llama", "hidden_size": 16}, "dtype": "float32"},
    "optimizer": {
        "learning_rate": 0.0005,
        "betas": [0.9, 0.98],
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "warmup_share": 0.05,
        "schedule": "stage",
    },
    "batch": {
        "tokens_per_step": 614400,
        "max_length": 2048,
        "packing": "best_fit",
        "isolate": True,
        "separator": "none",
    },
    "seed": 0,
    "matched_with": "baseline-en-fr",
}


def test_files_of_earlier_versions_are_read():
    assert Recipe.from_dict(OLD_FILE) == recipe("interleave-ft", PAPER)
    assert Recipe.from_dict(OLD_FILE).language_targets() == {"en": 46_080_000_000, "fr": 15_360_000_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 3}, r"unknown setting 'budget': .*Did you mean 'budget_tokens'\?"),
        (
            {"model": {"text_config": {"hiden_size": 1}}},
            r"'model.text_config.hiden_size'.*mean 'hidden_size'\?",
        ),
        ({"model": {}}, "setting 'model.text_config' is missing"),
        ({"stages": []}, "needs stages with different names"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({**OLD_FILE, **changes})


def test_a_decoder_takes_what_its_type_knows_and_old_names_of_rope():
    plan = recipe("baseline-en", PAPER)
    for name, value in {"rope_theta": 1e6, "attention_dropout": 0.1, "num_hidden_layers": 2}.items():
        assert with_changes(plan, {f"model.text_config.{name}": value}).model.text_config[name] == value
    gpt2 = {**OLD_FILE, "model": {"text_config": {"model_type": "gpt2", "n_embd": 16, "hidden_size": 16}}}
    assert Recipe.from_dict(gpt2).model.text_config["n_embd"] == 16
    with pytest.raises(ValueError, match=r"unknown setting 'model\.text_config\.n_embd'"):
        with_changes(plan, {"model.text_config.n_embd": 16})


def test_the_example_of_three_languages():
    plan = Recipe.from_dict(read_file(EXAMPLE))
    assert plan.languages == ("en", "fr", "de")
    assert plan.stages[1].switching == Switching(every=2) and plan.stages[1].weights == (1.0, 2.0, 2.0)
    assert plan.expected_tokens() == {
        "english": {"en": 24_000_000, "fr": 0, "de": 0},
        "interleaved": {"en": 3_600_000, "fr": 7_200_000, "de": 7_200_000},
        "fine-tuning": {"en": 2_400_000, "fr": 7_800_000, "de": 7_800_000},
    }
    assert plan.language_targets() == {"en": 30_000_000, "fr": 15_000_000, "de": 15_000_000}
    assert plan.expected_steps() == {"english": 366, "interleaved": 275, "fine-tuning": 275}


def test_one_language_is_enough():
    plan = Recipe("de", ("de",), 100, (StageSettings("de", "monolingual", {"de": 100}),), PAPER.model)
    assert plan.expected_tokens() == {"de": {"de": 100}}
    with pytest.raises(ValueError, match="recipe 'de' has no targets"):
        plan.language_targets()


@pytest.mark.parametrize(
    ("changes", "start", "expected"),
    [
        ({}, None, [1 / 3, 1 / 3, 1 / 3]),
        ({"weights": (1.0, 1.0, 2.0)}, None, [0.25, 0.25, 0.5]),
        ({"weights": (1.0, 1.0, 2.0), "switching": Switching("story")}, None, [0.25, 0.25, 0.5]),
        ({"switching": Switching("story", start="b")}, 1, [0, 1, 0]),
        ({"switching": Switching(probability=0.0, start="c")}, 2, [0, 0, 1]),
        ({"switching": Switching(probability=0.0), "weights": (1.0, 1.0, 2.0)}, None, [0.25, 0.25, 0.5]),
        # w (1 - w): 3/16, 3/16, 4/16
        ({"weights": (1.0, 1.0, 2.0), "switching": Switching(probability=0.3)}, None, [0.3, 0.3, 0.4]),
        ({"weights": (0.0, 2.0, 0.0), "switching": Switching(probability=0.3)}, None, [0, 1, 0]),
    ],
)
def test_expected_shares_of_an_interleaved_stage(changes, start, expected):
    stage = StageSettings("x", "interleaved", {"*": 1}, **changes)
    assert stage.expected_shares(3, start) == pytest.approx(expected)


def test_expected_shares_are_what_is_drawn():
    stage = StageSettings(
        "x", "interleaved", {"*": 1}, weights=(1.0, 2.0, 5.0), switching=Switching(2, probability=0.7)
    )
    rng = np.random.default_rng(0)
    keys, counts = rng.integers(0, 2**63, 2000).astype(np.uint64), np.full(2000, 40)
    epochs = np.zeros(2000, dtype=np.int64)
    drawn = draw_document_languages(0, epochs, keys, counts, ("a", "b", "c"), stage.weights, stage.switching)
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx(stage.expected_shares(3), abs=0.015)


def test_what_is_expected_is_whole_and_adds_up():
    plan = with_changes(recipe("interleave", SIZES["tiny"]), {"budget_tokens": 1001})
    assert plan.expected_tokens()["interleaved"] == {"en": 100, "fr": 100}
    weighted = with_changes(plan, {"stages.interleaved.weights": [1, 2]})
    assert weighted.expected_tokens()["interleaved"] == {"en": 67, "fr": 133}


def test_unknown_recipe_is_refused_with_those_that_there_are():
    with pytest.raises(
        ValueError,
        match=r"unknown recipe 'interleaved'; choose from baseline-en, baseline-fr.*mean 'interleave'\?",
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
        ({"mode": "mixed", "parts": {"en": 1}, "weights": (1.0,)}, "weights are about interleaved stages"),
        ({"mode": "mixed", "parts": {"en": 1}, "switching": Switching(2)}, "switching and weights are about"),
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
        (lambda: OptimizerSettings(learning_rate=0), "learning_rate must be a positive number, got 0"),
        (lambda: BatchSettings(tokens_per_step=0), "tokens_per_step must be at least 1, got 0"),
        (lambda: BatchSettings(rows_per_forward=0), "rows_per_forward must be at least 1, got 0"),
        (lambda: BatchSettings(max_length=0), "max_length must be at least 1, got 0"),
        (lambda: DataSettings(order="random"), "order must be one of global, shards, got 'random'"),
        (lambda: DataSettings(lanes=0), "lanes must be at least 1, got 0"),
        (lambda: DataSettings(block_stories=0), "block_stories must be at least 1, got 0"),
        (lambda: ModelSettings({}, dtype="float16"), "dtype must be one of float32, bfloat16, got 'float16'"),
        (lambda: recipe("interleave", PAPER, ("en", "en")), "two different codes"),
        (
            lambda: recipe("interleave", PAPER, ("en", "fr", "de")),
            "two different codes .*three_languages.yaml",
        ),
        (lambda: recipe("interleave", PAPER, seed=-1), "seed must not be negative"),
        (lambda: replace(recipe("interleave", PAPER), budget_tokens=0), "budget_tokens must be at least 1"),
        (lambda: replace(recipe("interleave", PAPER), languages=()), "different codes, at least one"),
        (lambda: replace(recipe("interleave", PAPER), languages=("en", "en")), "different codes, at least"),
        (lambda: replace(recipe("interleave", PAPER), targets={"de": 1}), r"has targets for \['de'\]"),
        (lambda: replace(recipe("interleave", PAPER), targets={"en": -1}), "targets must not be negative"),
        (
            lambda: replace(recipe("interleave-ft", PAPER), languages=("en", "fr", "de")),
            "stage 'fine-tuning' .* with 3 languages, give targets",
        ),
        (
            lambda: replace(recipe("interleave-ft", PAPER), targets={"en": 75}),
            "'fine-tuning' .*completes fr, for which the recipe has no targets",
        ),
        (
            lambda: with_changes(recipe("interleave", PAPER), {"stages.interleaved.weights": [1, 2, 3]}),
            "stage 'interleaved' .*has 3 weights for the 2 languages en, fr",
        ),
        (
            lambda: with_changes(recipe("interleave", PAPER), {"stages.interleaved.switching.start": "de"}),
            r"stage 'interleaved' starts with \['de'\], but the languages are en and fr",
        ),
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
