"""Runs of all recipes with a 16-wide model on a dozen made-up stories: what is fed, in which order, at which
learning rate, and what is left behind."""

import copy
import json
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hf_clsi
from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.training.budget import ANY_LANGUAGE, matched
from hf_clsi.training.recipes import (
    RECIPES,
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    TrainingPreset,
    recipe,
)
from hf_clsi.training.run import (
    RecipeRun,
    TrainingStories,
    new_model,
    save_run,
)
from hf_clsi.training.stories import listed_table
from hf_clsi.training.trainer import learning_rate_factor
from hf_clsi.units.merges import UnitMerges

PRESET = TrainingPreset(
    budget_tokens=600,
    model=ModelSettings(
        {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
    ),
    optimizer=OptimizerSettings(learning_rate=1e-2),
    batch=BatchSettings(tokens_per_step=60, max_length=64, separator="bos"),
)


def made_up_units(count=12, sentences=5):
    """Raw units with runs: English below 8, French from 8 to 15."""
    rng = np.random.default_rng(0)
    return {
        code: [
            [
                np.repeat(rng.integers(first, first + 8, rng.integers(2, 7)), 2).astype(np.uint16)
                for _ in range(sentences)
            ]
            for _ in range(count)
        ]
        for code, first in (("en", 0), ("fr", 8))
    }


UNITS = made_up_units()
MERGES = UnitMerges.learn(
    [sentence for code in UNITS for story in UNITS[code] for sentence in story],
    num_units=16,
    num_merges=6,
    deduplicate=True,
    show_progress=False,
)


def corpus(units=UNITS, merges=MERGES):
    return TrainingStories(
        ids=[f"story-{index}" for index in range(len(units["en"]))],
        tokens={code: [merges.encode(story) for story in units[code]] for code in units},
        units=units,
    )


def start(plan, folder, stories=None, merges=MERGES, logging_steps=1, kind=RecipeRun, **settings):
    model = new_model(plan, merges, frame_rate_hz=12.5, sampling_rate_hz=16000)
    stories = corpus() if stories is None else stories
    return kind(plan, stories, merges, model, 12.5, folder, logging_steps=logging_steps, **settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Recipe name -> (run, result), with the inputs of every forward in `run.fed`."""
    done = {}
    for name in RECIPES:
        run = start(recipe(name, PRESET), tmp_path_factory.mktemp(name))
        run.fed = record_inputs(run.model)
        done[name] = (run, run.run())
    return done


def record_inputs(model):
    """A list that grows with the keyword arguments of every forward in training."""
    fed = []

    def hook(module, args, kwargs):
        if module.training:
            fed.append(kwargs)

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return fed


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def planned_rows(plan, stories, languages):
    """A stage's documents as rows of lists, which the collator takes by another way than the feed's."""
    for story, partner, epoch, language, limit in zip(
        plan.story, plan.partner, plan.epoch, plan.language, plan.max_tokens, strict=True
    ):
        row = {"story_id": stories.ids[story], "epoch": int(epoch)}
        for position, code in enumerate(languages):
            source = partner if partner >= 0 and position > 0 else story
            row |= {
                f"tokens_{code}": stories.tokens[code][source],
                f"units_{code}": stories.units[code][source],
            }
        if language != ANY_LANGUAGE:
            row["language"] = languages[language]
        yield row | ({"max_tokens": int(limit)} if limit else {})


def batches_of(run, index):
    """The batches of a stage as the collator makes them from its plan."""
    plan, batch = run.plans[index], run.recipe.batch
    rows = list(planned_rows(plan, run.stories, run.recipe.languages))
    collator = InterleavingDataCollator(
        run.recipe.languages,
        merges=run.merges,
        max_length=batch.max_length,
        seed=run.recipe.seed,
        separator=batch.separator,
        pad_to_max_length=False,
    )
    borders = zip(plan.batches[:-1], plan.batches[1:], strict=True)
    return [collator(rows[first:last]) for first, last in borders]


# --- what is fed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_the_ledger_is_the_plan(runs, name):
    run, result = runs[name]
    assert len(result.ledger["stages"]) == len(run.recipe.stages)
    for stage, settings, plan in zip(result.ledger["stages"], run.recipe.stages, run.plans, strict=True):
        assert (stage["stage"], stage["mode"]) == (settings.name, settings.mode)
        assert list(stage["tokens"].values()) == plan.tokens.tolist()
        assert stage["steps"] == plan.num_steps
        expected = sum(run.recipe.tokens(parts) for parts in settings.parts.values())
        assert sum(stage["tokens"].values()) == expected
    parts = {"baseline-en": 75, "baseline-fr": 25, "interleave": 85, "interleave-unaligned": 85}
    assert sum(result.ledger["total"]["tokens"].values()) == 600 * parts.get(name, 100) // 100


def test_baseline_en_fr_and_interleave_ft_are_matched_to_the_token(runs):
    ledgers = {name: result.ledger for name, (_, result) in runs.items()}
    for name in ("baseline-en-fr", "interleave-ft"):
        assert ledgers[name]["total"]["tokens"] == {"en": 450, "fr": 150}
    pairs = [(run.recipe.matched_with, name) for name, (run, _) in runs.items() if run.recipe.matched_with]
    first, second = matched(ledgers, pairs)
    assert (first["a"], first["b"]) == ("baseline-en-fr", "interleave-ft")
    assert first["total_equal"] and first["languages_equal"]
    assert (second["a"], second["b"]) == ("interleave", "interleave-unaligned")
    assert second["total_equal"]


def test_a_completing_stage_makes_up_for_any_draw(tmp_path):
    """With 30 tokens to be drawn the languages come out unequal; the last stage levels them."""
    plan = recipe("interleave-ft", PRESET.with_(budget_tokens=150), seed=1)
    run = start(plan, tmp_path)
    drawn, tuned = run.plans[1].tokens.tolist(), run.plans[2].tokens.tolist()
    assert drawn[0] != drawn[1]
    assert tuned == [112 - 75 - drawn[0], 38 - drawn[1]]
    assert run.run().ledger["total"]["tokens"] == {"en": 112, "fr": 38}


def test_units_and_seconds_are_those_of_the_raw_speech(tmp_path):
    """Two epochs of English: tokens are deduplicated and merged, units are what the tokenizer gave."""
    stories = corpus()
    tokens = sum(len(sentence) for story in stories.tokens["en"] for sentence in story)
    units = sum(len(sentence) for story in stories.units["en"] for sentence in story)
    plan = recipe("baseline-en", PRESET)
    budget = 2 * tokens * 100 // 75 + 1
    plan = replace(plan, budget_tokens=budget)
    assert plan.tokens(75) == 2 * tokens
    total = start(plan, tmp_path).run().ledger["total"]
    assert total["tokens"]["en"] == 2 * tokens < total["units"]["en"] == 2 * units
    assert total["seconds"]["en"] == 2 * units / 12.5
    assert total["epochs"] == {"en": 2.0, "fr": 0.0}


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_sees_the_plans_batches_in_order(runs, name):
    run, _ = runs[name]
    expected = [batch for index in range(len(run.plans)) for batch in batches_of(run, index)]
    assert len(run.fed) == len(expected)
    for fed, batch in zip(run.fed, expected, strict=True):
        for key in ("input_ids", "labels", "position_ids"):
            assert torch.equal(fed[key], batch[key])
        assert "attention_mask" not in fed and "token_counts" not in fed


def test_the_control_takes_the_other_language_from_another_story(tmp_path):
    plan = start(recipe("interleave-unaligned", PRESET), tmp_path).plans[1]
    assert (plan.partner >= 0).all() and (plan.partner != plan.story).all()


# --- training -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_model_and_another_seed_another(runs, tmp_path):
    first, result = runs["interleave"]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)  # whatever the global generators hold
    again = start(recipe("interleave", PRESET), tmp_path / "again")
    other = start(recipe("interleave", PRESET, seed=1), tmp_path / "other")
    curve = again.run().curve
    assert equal(weights(again), weights(first)) and curve == result.curve
    assert not equal(weights(other), weights(first))
    assert other.run().curve != result.curve
    assert other.plans[0].story.tolist() != first.plans[0].story.tolist()


def test_global_generators_are_left_alone(tmp_path):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    start(recipe("baseline-fr", PRESET), tmp_path).run()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_callers_settings_stories_and_config_stay_as_they_are(tmp_path):
    plan, stories = recipe("interleave", PRESET), corpus()
    settings, rows = copy.deepcopy(plan.to_dict()), copy.deepcopy(stories)
    run = start(plan, tmp_path, stories)
    config, attributes = run.model.config.to_dict(), set(vars(run.model))
    run.run()
    assert plan.to_dict() == settings
    assert run.model.config.to_dict() == config
    assert set(vars(run.model)) == attributes
    for code in ("en", "fr"):
        for columns, copies in ((stories.tokens, rows.tokens), (stories.units, rows.units)):
            for story, same in zip(columns[code], copies[code], strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(story, same, strict=True))


def test_loss_falls_on_an_easy_corpus(tmp_path):
    """Every sentence counts up: after its first unit there is nothing to guess."""
    units = {
        code: [
            [(np.arange(6) + story + sentence) % 8 + first for sentence in range(5)] for story in range(12)
        ]
        for code, first in (("en", 0), ("fr", 8))
    }
    units = {
        code: [[np.array(s, np.uint16) for s in story] for story in rows] for code, rows in units.items()
    }
    merges = UnitMerges(16)
    preset = PRESET.with_(budget_tokens=4000, optimizer=OptimizerSettings(learning_rate=3e-2))
    run = start(recipe("baseline-en-fr", preset), tmp_path, corpus(units, merges), merges)
    losses = [entry["loss"] for entry in run.run().curve]
    assert losses[0] > 2.7  # about ln 19
    assert np.mean(losses[-5:]) < 1.0


def test_the_first_loss_is_that_of_the_documents_alone(runs):
    """Packing, labels and the Trainer's own division leave the mean over all predicted tokens."""
    run, result = runs["interleave"]
    model = new_model(run.recipe, MERGES, 12.5, 16000)
    (batch, *_) = batches_of(run, 0)
    total, count = 0.0, 0
    for tokens, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        starts = [*torch.where(positions == 0)[0].tolist(), len(tokens)]
        for first, last in pairwise(starts):
            document = tokens[first:last]
            if document[0] == model.config.pad_token_id:
                continue
            with torch.no_grad():
                log_p = model(document[None]).logits[0, :-1].log_softmax(-1)
            total -= log_p.gather(1, document[1:, None]).sum().item()
            count += len(document) - 1
    assert result.curve[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_optimizer_goes_on_over_the_stages(runs):
    run, _ = runs["interleave-ft"]
    states = load_file(run.stage_checkpoint(2) / "optimizer.safetensors")
    steps = {name.split("/")[0]: int(value) for name, value in states.items() if name.endswith("/step")}
    assert set(steps) == {name for name, _ in run.model.named_parameters()}
    assert set(steps.values()) == {sum(plan.num_steps for plan in run.plans)}


def test_only_matrices_decay(tmp_path):
    settings = OptimizerSettings(learning_rate=1e-3, betas=(0.8, 0.9), weight_decay=0.3, max_grad_norm=0.25)
    run = start(recipe("baseline-fr", PRESET.with_(optimizer=settings)), tmp_path)
    run.run()
    saved = json.loads((run.stage_checkpoint(0) / "optimizer.json").read_text())
    groups = {group["weight_decay"]: group for group in saved}
    assert set(groups) == {0.0, 0.3}
    ndim = {name: p.ndim for name, p in run.model.named_parameters()}
    assert {ndim[name] for name in groups[0.3]["parameters"]} == {2}
    assert {ndim[name] for name in groups[0.0]["parameters"]} == {1}
    assert sum(len(group["parameters"]) for group in saved) == len(ndim)
    assert all(group["betas"] == [0.8, 0.9] and group["initial_lr"] == 1e-3 for group in saved)
    assert run._arguments().max_grad_norm == 0.25


# --- learning rate and curve --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "warmup_share", "expected"),
    [
        (8, 0.25, [1 / 2, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
        (4, 0.05, [1, 3 / 4, 2 / 4, 1 / 4]),  # at least one step of warm-up
        (4, 1.0, [1 / 4, 2 / 4, 3 / 4, 1]),
        (1, 0.05, [1]),
    ],
)
def test_learning_rate_factor(total, warmup_share, expected):
    factors = [learning_rate_factor(step, total, warmup_share) for step in range(total)]
    assert factors == pytest.approx(expected)
    assert learning_rate_factor(total, total, warmup_share) == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Stages of 6 and 2 steps; a quarter of each warms up.
        ("stage", [1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5, 1, 1 / 2]),
        ("run", [1 / 2, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
    ],
)
def test_the_schedule_of_a_run(tmp_path, schedule, expected):
    optimizer = OptimizerSettings(learning_rate=1e-2, warmup_share=0.25, schedule=schedule)
    run = start(recipe("interleave", PRESET.with_(optimizer=optimizer)), tmp_path)
    assert [plan.num_steps for plan in run.plans] == [6, 2]
    curve = run.run().curve
    assert [entry["learning_rate"] for entry in curve] == pytest.approx([1e-2 * f for f in expected])


def test_the_curve_reaches_from_the_first_to_the_last_step_of_every_stage(tmp_path):
    reported = []
    run = start(recipe("interleave-ft", PRESET), tmp_path, logging_steps=3, report=reported.append)
    result = run.run()
    assert [{k: v for k, v in entry.items() if k != "units_per_second"} for entry in reported] == result.curve
    assert all(entry["units_per_second"] > 0 for entry in reported)
    lines = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.curve
    assert [entry["global_step"] for entry in result.curve] == [1, 3, 5, 6, 7, 8, 10]
    steps = {}
    for entry in result.curve:
        steps.setdefault(entry["stage"], []).append(entry["step"])
    assert steps == {"en": [1, 3, 5], "interleaved": [1, 2], "fine-tuning": [1, 3]}
    tokens = [entry["tokens"] for entry in result.curve]
    assert tokens == sorted(set(tokens)) and tokens[-1] == 600


# --- stages of a run ----------------------------------------------------------------------------------------


def test_a_run_goes_on_from_anothers_stage_as_if_it_were_its_own(runs, tmp_path):
    first = start(recipe("interleave", PRESET), tmp_path / "first", keep_stages=True)
    first.run()
    second = start(recipe("interleave-unaligned", PRESET), tmp_path / "second")
    second.restore(first.stage_checkpoint(0))
    fed = record_inputs(second.model)
    continued = second.run()
    whole, result = runs["interleave-unaligned"]
    assert len(fed) == second.plans[1].num_steps
    assert equal(weights(second), weights(whole))
    assert continued.curve == result.curve
    assert continued.ledger == result.ledger
    lines = (tmp_path / "second" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.curve


def test_the_next_stages_learning_rate_is_not_that_of_the_run_it_goes_on_from(tmp_path):
    """Two steps of warm-up instead of one, since the other recipe's second stage is longer."""
    optimizer = OptimizerSettings(learning_rate=1e-2, warmup_share=0.5)
    short = recipe("interleave", PRESET.with_(optimizer=optimizer))
    stage = replace(short.stages[1], parts={"*": 40})
    long = replace(short, name="long", stages=(short.stages[0], stage))
    first = start(short, tmp_path / "first", keep_stages=True)
    first.run()
    second, whole = start(long, tmp_path / "second"), start(long, tmp_path / "whole")
    second.restore(first.stage_checkpoint(0))
    assert [plan.num_steps for plan in second.plans] == [6, 4]
    assert second.run().curve == whole.run().curve
    assert equal(weights(second), weights(whole))


def test_a_stage_of_other_budgets_is_refused(tmp_path):
    run = start(recipe("baseline-fr", PRESET), tmp_path)
    run.run()
    other = start(recipe("baseline-fr", PRESET.with_(budget_tokens=700)), tmp_path / "other")
    before = weights(other)
    with pytest.raises(ValueError, match=r"another run: recipe.budget_tokens is 600, not 700"):
        other.restore(run.stage_checkpoint(0))
    assert equal(weights(other), before)


def test_a_budget_that_cannot_be_met_is_refused_before_training(tmp_path):
    plan = recipe("interleave-ft", PRESET)
    english = replace(plan.stages[0], parts={"en": 80})  # more than the 75 parts to end with
    with pytest.raises(ValueError, match=r"stage 'fine-tuning' has a budget of -[0-9]+ tokens for 'en'"):
        start(replace(plan, stages=(english, *plan.stages[1:])), tmp_path)


def test_stories_without_a_language_are_refused(tmp_path):
    stories = corpus({"en": UNITS["en"]})
    with pytest.raises(ValueError, match="'interleave' needs tokens and units in fr"):
        start(recipe("interleave", PRESET), tmp_path, stories)


@pytest.mark.parametrize(("added", "removed"), [("en", None), (None, "fr"), ("en", "fr")])
def test_a_ledger_unlike_its_plan_is_an_error(tmp_path, added, removed):
    """A token more in one language, or less, or both, so that the total is as planned."""
    stories = corpus()
    run = start(recipe("baseline-en-fr", PRESET.with_(budget_tokens=200)), tmp_path, stories)
    plan = run.plans[0]
    for code, change in ((added, 1), (removed, -1)):
        if code is not None:  # in the language's first document, which is read once and whole
            first = plan.story[plan.language == ("en", "fr").index(code)][0]
            story = stories.tokens[code][first]
            index = max(range(len(story)), key=lambda i: len(story[i]))
            story[index] = story[index][:-1] if change < 0 else np.append(story[index], story[index][-1])
    run.feed.stories = listed_table(stories.ids, stories.tokens, stories.units)
    with pytest.raises(RuntimeError, match=r"stage 'mixed' of baseline-en-fr fed .* its plan says"):
        run.run()
    assert not list(tmp_path.glob("checkpoint-*"))
    expected = 200 + (added is not None) - (removed is not None)
    assert run.ledger.tokens() == expected


class _Bfloat16(RecipeRun):
    """bfloat16 on a CPU, where the recipe's dtype is left alone."""

    def _arguments(self, steps=1):
        return replace(super()._arguments(steps), bf16=True)


def test_every_stage_runs_in_bfloat16_and_the_result_in_float32(tmp_path):
    run = start(recipe("interleave", PRESET), tmp_path, kind=_Bfloat16)
    seen = []
    run.model.get_decoder().layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    run.run()
    assert len(seen) == 8 and set(seen) == {torch.bfloat16}
    run.model(torch.tensor([[1, 2]]))
    assert seen[-1] == torch.float32
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}


# --- model and files ----------------------------------------------------------------------------------------


def test_a_new_model_has_the_recipes_settings_and_seed():
    plan = recipe("interleave", PRESET)
    model, again = (new_model(plan, MERGES, 12.5, 16000) for _ in range(2))
    other = new_model(recipe("interleave", PRESET, seed=1), MERGES, 12.5, 16000)
    config = model.config
    assert (config.num_units, config.num_merges, config.deduplicate) == (16, 6, True)
    assert (config.separator, config.frame_rate, config.sampling_rate) == ("bos", 12.5, 16000)
    assert config.languages == ["en", "fr"] and config.text_config.hidden_size == 16
    assert equal(model.state_dict(), again.state_dict())
    assert not equal(model.state_dict(), other.state_dict())


def test_a_saved_run_is_loaded_by_the_auto_class(runs, tmp_path):
    assert hf_clsi.ClsiForCausalLM  # importing the package is what registers
    run, result = runs["interleave-ft"]
    save_run(result, run.recipe, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "recipe.json",
        "training.json",
    }
    assert not result.model.training
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(model) is hf_clsi.ClsiForCausalLM
    prompt = torch.tensor([[model.config.bos_token_id, 3, 1, 4]])
    assert torch.equal(model(prompt).logits, result.model(prompt).logits)
    assert Recipe.from_dict(json.loads((tmp_path / "model" / "recipe.json").read_text())) == run.recipe
    training = json.loads((tmp_path / "model" / "training.json").read_text())
    assert training == {"curve": result.curve, "ledger": result.ledger}
