"""Sizes: the paper's numbers, and the models that they describe, counted without memory for them."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_clsi.configuration_clsi import SIZES as CONFIGS
from hf_clsi.configuration_clsi import ClsiConfig
from hf_clsi.experiment.presets import PRESETS
from hf_clsi.modeling_clsi import ClsiForCausalLM
from hf_clsi.training.recipes import RECIPES, OptimizerSettings, recipe
from hf_clsi.training.sizes import SIZES, size

PAPER = ("360m", "1b")


def test_names():
    assert tuple(SIZES) == ("tiny", "small", "gpu", "360m", "1b")


@pytest.mark.parametrize(
    ("name", "parameters", "text_model", "text_parameters", "text_vocabulary"),
    [
        # The published sizes of the text models (494.0 M and 1,235.8 M), with their own vocabularies.
        ("360m", 359_735_808, "Qwen/Qwen2-0.5B", 494_032_768, 151_936),
        ("1b", 977_346_560, "meta-llama/Llama-3.2-1B", 1_235_814_400, 128_256),
    ],
)
def test_the_papers_models(name, parameters, text_model, text_parameters, text_vocabulary):
    settings = SIZES[name].model
    text_config = CONFIG_MAPPING[settings.text_config["model_type"]](
        **{**settings.text_config, "vocab_size": text_vocabulary}
    )
    with torch.device("meta"):
        model = ClsiForCausalLM(ClsiConfig(num_units=2048, text_config=settings.text_config))
        text = AutoModelForCausalLM.from_config(text_config)
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert sum(each.numel() for each in text.parameters()) == text_parameters
    assert (settings.initialize_from, settings.dtype) == (text_model, "bfloat16")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name):
    settings = SIZES[name]
    assert settings.budget_tokens == 100_000 * 614_400 == 61_440_000_000
    assert (settings.batch.tokens_per_step, settings.batch.max_length) == (4 * 153_600, 2048)
    assert settings.optimizer == OptimizerSettings(
        learning_rate=5e-4,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        max_grad_norm=1.0,
        warmup_share=0.05,
        schedule="stage",
    )
    assert settings.model.text_config == CONFIGS[name]["text_config"]


STEPS = {
    "baseline-en": [75_000],
    "baseline-fr": [25_000],
    "baseline-en-fr": [100_000],
    "interleave": [65_000, 20_000],
    "interleave-ft": [50_000, 20_000, 30_000],  # the last: 15k + 15k in turns
}
# Total and French in units; published: 46.08 / 0, 15.36 / 15.36, 61.44 / 15.36, 52.22 / 6.14, 61.44 / 15.36.
UNITS = {
    "baseline-en": (46_080_000_000, 0),
    "baseline-fr": (15_360_000_000, 15_360_000_000),
    "baseline-en-fr": (61_440_000_000, 15_360_000_000),
    "interleave": (52_224_000_000, 6_144_000_000),
    "interleave-ft": (61_440_000_000, 15_360_000_000),
}


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("row", STEPS)
def test_the_papers_table_to_the_last_unit(row, name):
    plan = recipe(row, SIZES[name])
    stages = plan.expected_tokens()
    assert list(plan.expected_steps().values()) == STEPS[row]
    french = sum(tokens["fr"] for tokens in stages.values())
    assert (sum(sum(tokens.values()) for tokens in stages.values()), french) == UNITS[row]
    assert [sum(tokens.values()) for tokens in stages.values()] == [steps * 614_400 for steps in STEPS[row]]


@pytest.mark.parametrize("name", PRESETS)
def test_the_experiment_uses_the_size_of_its_name(name):
    assert PRESETS[name]().training == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_every_recipe_at_every_size_builds_a_model(name):
    plan = recipe("interleave", SIZES[name])
    assert set(RECIPES) > {"interleave"}
    with torch.device("meta"):
        model = ClsiForCausalLM(ClsiConfig(num_units=64, text_config=plan.model.text_config))
    assert model.config.text_config.num_hidden_layers == plan.model.text_config["num_hidden_layers"]
    assert plan.batch.max_length <= plan.model.text_config["max_position_embeddings"]


def test_a_size_is_a_copy():
    size("1b").model.text_config["rope_parameters"]["factor"] = 1.0
    assert SIZES["1b"].model.text_config["rope_parameters"]["factor"] == 32.0
    assert CONFIGS["1b"]["text_config"]["rope_parameters"]["factor"] == 32.0


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown size '350m'; choose from tiny, small, gpu, 360m, 1b"):
        size("350m")
