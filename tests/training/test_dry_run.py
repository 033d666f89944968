"""Plans: the paper's totals to the last digit, epochs over given corpora, and what is printed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_clsi.batches.interleave import Switching
from hf_clsi.configuration_clsi import SIZES as CONFIGS
from hf_clsi.training import cost
from hf_clsi.training.budget import StoryLengths, plan_stage
from hf_clsi.training.dry_run import (
    PAPER_CORPORA,
    CorpusSize,
    corpora_of,
    describe,
    plan_of,
    scale_tables,
    with_tables,
)
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
from hf_clsi.training.sizes import size
from hf_clsi.training.trainer import learning_rate_factor

DECODER = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
TINY = TrainingPreset(
    budget_tokens=10_000,
    model=ModelSettings(DECODER),
    optimizer=OptimizerSettings(),
    batch=BatchSettings(tokens_per_step=100, max_length=32),
)


def papers(size_name):
    """The paper's settings, written down here once more."""
    return TrainingPreset(
        budget_tokens=61_440_000_000,
        model=ModelSettings(CONFIGS[size_name]["text_config"], "bfloat16"),
        optimizer=OptimizerSettings(),
        batch=BatchSettings(tokens_per_step=614_400, max_length=2048),
    )


def tiny_plan(name="interleave-ft", corpora=None, preset=TINY, **options):
    return plan_of(recipe(name, preset), corpora, num_units=7, **options)


@pytest.mark.parametrize("size_name", ["360m", "1b"])
@pytest.mark.parametrize(
    ("name", "total", "french", "steps"),
    [
        ("baseline-en", "46.08", "0.00", [75_000]),
        ("baseline-fr", "15.36", "15.36", [25_000]),
        ("baseline-en-fr", "61.44", "15.36", [100_000]),
        ("interleave", "52.22", "6.14", [65_000, 20_000]),
        ("interleave-ft", "61.44", "15.36", [50_000, 20_000, 30_000]),
    ],
)
def test_the_papers_rows(name, total, french, steps, size_name):
    for preset in (papers(size_name), size(size_name)):
        plan = plan_of(recipe(name, preset))
        assert [stage.steps for stage in plan.stages] == steps
        assert f"{plan.total_tokens / 1e9:.2f}" == total
        assert f"{plan.tokens['fr'] / 1e9:.2f}" == french
        assert plan.total_tokens == 614_400 * sum(steps)  # and to the unit
        assert plan.units == plan.tokens


def test_expected_tokens_are_the_recipes():
    for name in RECIPES:
        made = recipe(name, papers("1b"))
        plan = plan_of(made)
        assert {stage.name: stage.tokens for stage in plan.stages} == made.expected_tokens()
        assert {stage.name: stage.steps for stage in plan.stages} == made.expected_steps()


def test_epochs_over_the_papers_corpora():
    plan = plan_of(recipe("interleave-ft", papers("1b")))
    assert plan.corpora_are_the_papers
    assert plan.corpora == PAPER_CORPORA
    # "EN is seen about 13 times and FR about 16 times"
    assert plan.epochs == pytest.approx({"en": 46.08 / 3.42, "fr": 15.36 / 0.945})
    interleaved = plan.stages[1]
    assert interleaved.passes == pytest.approx(12.288 / 0.945)  # each sentence in one of its languages
    assert interleaved.epochs == pytest.approx({"en": 6.144 / 0.945, "fr": 6.144 / 0.945})
    assert plan.hours["fr"] == pytest.approx(15.36e9 / 12.5 / 3600)


def test_corpora_of_other_models_and_languages_are_not_the_papers():
    assert plan_of(recipe("interleave", papers("360m"), ("en", "de"))).corpora is None
    plan = tiny_plan()
    assert plan.corpora is None
    assert plan.epochs == {"en": None, "fr": None}
    assert plan.stages[1].passes is None
    assert plan.disk["data"] is None


def test_epochs_over_corpora_that_are_given():
    plan = tiny_plan("baseline-en-fr", {"en": CorpusSize(5_000), "fr": CorpusSize(500)})
    assert plan.epochs == {"en": 1.5, "fr": 5.0}
    assert not plan.corpora_are_the_papers
    assert plan.disk["data"] == 2 * 5_500


def test_a_language_that_says_more_is_read_more_where_sentences_draw():
    corpora = {"en": CorpusSize(4_000, aligned_tokens=1_000), "fr": CorpusSize(3_000)}
    stages = {stage.name: stage for stage in tiny_plan(corpora=corpora).stages}
    assert stages["interleaved"].tokens == {"en": 500, "fr": 1_500}
    assert stages["interleaved"].epochs == {"en": 0.5, "fr": 0.5}
    assert stages["interleaved"].passes == 1.0
    # what completes takes what is left to 7,500 and 2,500
    assert stages["fine-tuning"].tokens == {"en": 2_000, "fr": 1_000}
    assert stages["fine-tuning"].steps == 30


def test_weights_and_switching_change_what_is_expected():
    def french(**settings):
        stage = StageSettings("i", "interleaved", {"*": 100}, **settings)
        made = Recipe("r", ("en", "fr"), 1_000, (stage,), TINY.model, TINY.optimizer, TINY.batch)
        return plan_of(made, num_units=7).tokens["fr"]

    assert french() == 500
    assert french(weights=(3.0, 1.0)) == 250
    assert french(weights=(3.0, 1.0), switching=Switching(probability=0.3)) == 500
    assert french(switching=Switching(every="story", start="fr")) == 1_000


def lengths(stories=40, seed=3):
    random = np.random.default_rng(seed)
    sentences = {
        code: [[np.zeros(n, np.uint16) for n in random.integers(1, 9, 6)] for _ in range(stories)]
        for code in ("en", "fr")
    }
    return StoryLengths.of([f"story-{index}" for index in range(stories)], sentences)


@pytest.mark.parametrize("name", ["baseline-en", "baseline-en-fr", "interleave"])
def test_steps_and_totals_are_those_of_the_real_plan(name):
    made, corpus = recipe(name, TINY), lengths()
    plan = plan_of(made, corpora_of(corpus), num_units=7)
    for expected, stage in zip(plan.stages, made.stages, strict=True):
        budgets = {code: made.tokens(parts) for code, parts in stage.parts.items()}
        real = plan_stage(stage, budgets, corpus, made.languages, 100, seed=0)
        assert expected.steps == real.num_steps
        assert sum(expected.tokens.values()) == real.tokens.sum()
        # the draw itself: 40 stories of 6 sentences, read several times
        assert list(expected.tokens.values()) == pytest.approx(real.tokens.tolist(), rel=0.1)


def test_corpora_of_stories_count_their_tokens():
    corpus = lengths()
    sizes = corpora_of(corpus, units={"en": 9_999, "fr": 8_888})
    assert sizes["en"] == CorpusSize(int(corpus.tokens["en"].sum()), 9_999, documents=40)
    few = lengths(stories=10, seed=4)
    readings = {code: (corpus, np.arange(40)) for code in ("en", "fr")} | {"*": (few, np.arange(10))}
    assert corpora_of(readings)["fr"].aligned == few.tokens["fr"].sum()
    assert corpora_of(readings)["fr"].tokens == corpus.tokens["fr"].sum()


def test_documents_of_a_known_length_need_less_attention():
    corpora = {"en": CorpusSize(300, documents=30), "fr": CorpusSize(300, documents=30)}
    assert tiny_plan(corpora=corpora).context == 5.5  # (10 + 1) / 2
    assert tiny_plan(corpora={code: CorpusSize(300) for code in ("en", "fr")}).context == 16.5
    chained = TINY.with_(batch=replace(TINY.batch, isolate=False))
    assert tiny_plan(corpora=corpora, preset=chained).context == 16.5


def test_merged_tokens_become_units_only_where_somebody_counted():
    made = recipe("baseline-en", TINY)
    unknown = plan_of(made, num_units=7, num_merges=5)
    assert unknown.units == unknown.hours == {"en": None, "fr": None}
    corpora = {code: CorpusSize(1_000, units=1_500) for code in ("en", "fr")}
    known = plan_of(made, corpora, num_units=7, num_merges=5, units_per_second=11_250 / 3600)
    assert known.units == {"en": 11_250, "fr": 0}
    assert known.hours["en"] == pytest.approx(11_250 / 12.5 / 3600)
    assert known.gpu_hours == pytest.approx(1.0)
    assert "tokens" in describe(unknown).splitlines()[0]


def test_gpu_hours_from_a_share_of_the_peak_and_from_a_measured_speed():
    plan = plan_of(recipe("interleave-ft", papers("1b")), gpus=4, gpu="h100", mfu=0.4)
    flops = 6 * 977_346_560 + 12 * 16 * 2048 * 1024.5
    assert plan.flops_per_token == flops
    assert plan.gpu_hours == pytest.approx(61.44e9 * flops / (989e12 * 0.4) / 3600)
    assert plan.step_seconds == pytest.approx(plan.gpu_hours * 3600 / 4 / 100_000)
    again = plan_of(recipe("interleave-ft", papers("1b")), gpu="h100", units_per_second=plan.units_per_second)
    assert again.gpu_hours == pytest.approx(plan.gpu_hours)
    assert again.mfu == pytest.approx(0.4)
    assert sum(stage.gpu_hours for stage in plan.stages) == pytest.approx(plan.gpu_hours)


def test_what_a_recipe_is_matched_with():
    assert tiny_plan().matched == {"total": 1.0, "en": 1.0, "fr": 1.0}
    assert tiny_plan("interleave-unaligned").matched == {"total": 1.0, "en": 1.0, "fr": 1.0}
    assert tiny_plan("interleave").matched is None
    short = recipe("interleave-ft", TINY)
    short = replace(short, stages=short.stages[:2])
    assert plan_of(short, num_units=7).matched == {"total": 0.7, "en": 0.8, "fr": 0.4}


def test_the_step_of_one_gpu():
    plan = plan_of(recipe("interleave", size("1b")), gpus=4)
    assert (plan.rows_per_gpu, plan.rows_per_forward, plan.forwards) == (75, 8, 10)
    whole = plan_of(recipe("interleave", papers("1b")), gpus=4)
    assert (whole.rows_per_forward, whole.forwards) == (75, 1)
    assert not whole.memory["ddp"]["fits"]  # 75 rows of activations
    assert plan.memory["ddp"]["fits"]
    assert set(plan_of(recipe("interleave", size("1b"))).memory) == {"one GPU", "one GPU, checkpointing"}


@pytest.mark.parametrize("schedule", ["stage", "run"])
def test_warm_up_is_where_the_learning_rate_rises(schedule):
    preset = TINY.with_(optimizer=OptimizerSettings(warmup_share=0.6, schedule=schedule))
    plan = tiny_plan(preset=preset)
    steps = [stage.steps for stage in plan.stages]
    assert steps == [50, 20, 30]
    for index, stage in enumerate(plan.stages):
        before, total = (0, stage.steps) if schedule == "stage" else (sum(steps[:index]), sum(steps))
        factors = [learning_rate_factor(before + step, total, 0.6) for step in range(stage.steps)]
        previous = [0.0 if not before else learning_rate_factor(before - 1, total, 0.6), *factors]
        rises = sum(after > first for first, after in zip(previous, factors, strict=False))
        assert stage.warmup_steps == rises


def test_disk():
    checkpoint = cost.checkpoint_bytes(cost.model_shape(DECODER, num_units=7))
    disk = tiny_plan(save_steps=10, keep=3).disk
    assert (disk["checkpoints_written"], disk["checkpoints_kept"]) == (10, 3)
    assert disk["checkpoints_at_most"] == 4 * checkpoint  # the fourth is whole before the first goes
    by_stage = tiny_plan("baseline-en", keep=3).disk
    assert (by_stage["checkpoints_written"], by_stage["checkpoints_at_most"]) == (1, checkpoint)


def test_a_plan_is_json():
    plan = tiny_plan(corpora={"en": CorpusSize(5_000), "fr": CorpusSize(500)})
    again = json.loads(json.dumps(plan.to_dict()))
    assert again == plan.to_dict()
    assert again["stages"][1]["mode"] == "interleaved"


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="there is no corpus in fr; those given are en"):
        tiny_plan(corpora={"en": CorpusSize(10)})
    with pytest.raises(ValueError, match="fr has no aligned tokens"):
        tiny_plan(corpora={"en": CorpusSize(10), "fr": CorpusSize(10, aligned_tokens=0)})
    with pytest.raises(ValueError, match="aligned_tokens are a part"):
        CorpusSize(10, aligned_tokens=11)
    for options in ({"gpus": 0}, {"keep": 0}, {"save_steps": 0}, {"units_per_second": 0}, {"mfu": 2}):
        with pytest.raises(ValueError, match=r"must be|share of the peak"):
            tiny_plan(**options)


def test_a_plan_for_people():
    text = describe(plan_of(recipe("interleave-ft", papers("1b")), gpus=4, save_steps=1000))
    lines = text.splitlines()
    assert lines[0] == "interleave-ft (en, fr): 61.44 B units in 100,000 steps of 614,400"
    table = {line.split()[0]: line.split() for line in lines[2:7]}
    assert table["interleaved"][:7] == ["interleaved", "interleaved", "20,000", "6.14", "B", "6.14", "B"]
    assert table["total"][1:6] == ["100,000", "46.08", "B", "15.36", "B"]
    assert len({len(line) for line in lines[2:7]}) == 1  # numbers stand under each other
    assert "THE PAPER'S figures" in text
    assert "against baseline-en-fr" in text
    assert "977" not in lines[0]
    assert "to 0.0005 over 5% of the steps" in text
    unknown = describe(tiny_plan())
    assert "name the data" in unknown
    assert "THE PAPER'S" not in unknown


def test_the_tables_of_the_document_are_made_here():
    document = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert with_tables(document, scale_tables()) == document, (
        "run python -m hf_clsi.training.dry_run docs/scale.md"
    )


def test_a_table_without_a_place_is_refused():
    text = "before\n<!-- table a -->\nold\n<!-- end a -->\nafter"
    assert with_tables(text, {"a": "new"}) == "before\n<!-- table a -->\nnew\n<!-- end a -->\nafter"
    with pytest.raises(ValueError, match="no place for the table 'b'"):
        with_tables(text, {"b": "new"})
