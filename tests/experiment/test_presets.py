"""Presets and the changes that `--set` makes to them."""

import json

import pytest

from hf_clsi.experiment.presets import PRESETS, Preset, SpeechSettings, UnitSettings, preset
from hf_clsi.training.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_name_and_gives_every_recipe(name):
    settings = preset(name)
    assert settings.name == name
    for each in RECIPES:
        assert (
            recipe(each, settings.training, settings.languages).budget_tokens
            == settings.training.budget_tokens
        )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_becomes_json_and_stays_the_same(name):
    saved = preset(name).to_dict()
    assert json.loads(json.dumps(saved)) == json.loads(json.dumps(preset(name).to_dict()))
    assert saved["training"]["model"]["text_config"]["model_type"] == "llama"


def test_presets_grow():
    tiny, small, gpu = (PRESETS[name]() for name in ("tiny", "small", "gpu"))
    for size in (
        lambda settings: settings.training.budget_tokens,
        lambda settings: settings.training.model.text_config["hidden_size"],
        lambda settings: settings.train_stories,
    ):
        assert size(tiny) < size(small) < size(gpu)


@pytest.mark.parametrize("name", PRESETS)
def test_items_are_symmetric_pairs_over_all_topics_equally_and_enough_of_them(name):
    items = preset(name).items
    assert items >= 800
    assert items % (2 * 24) == 0


def test_changes_reach_nested_settings_and_leave_the_rest():
    changed = preset(
        "tiny",
        {
            "items": 48,
            "training.budget_tokens": 6000,
            "training.model.text_config.hidden_size": 32,
            "units.config.num_units": 16,
            "speech.reading": "sentences",
            "headline.span": "whole",
        },
    )
    assert (changed.items, changed.training.budget_tokens) == (48, 6000)
    assert changed.training.model.text_config["hidden_size"] == 32
    assert changed.units.config["num_units"] == 16
    assert changed.speech.reading == "sentences"
    assert changed.headline["span"] == "whole"
    default = preset("tiny")
    assert changed.training.optimizer == default.training.optimizer
    assert changed.units.config["hop_length"] == default.units.config["hop_length"]
    assert default.items != 48  # a change makes a copy


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training.budget_tokens", 4e5, 400_000),  # as JSON reads 4e5
        ("speech.pause_s", 0, 0.0),
        ("speech.speakers", ["m3", "f3"], ("m3", "f3")),
        ("same_character", False, False),
    ],
)
def test_a_value_takes_the_type_of_the_setting(path, value, expected):
    found = preset("tiny", {path: value})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"itms": 48}, r"unknown setting 'itms': .* Did you mean 'items'\?"),
        ({"training.model.text_config.hidden": 8}, r"'hidden' is not one of .*Did you mean 'hidden_size'\?"),
        ({"items.number": 8}, r"setting 'items.number': 'items' is the value \d+ and has no fields"),
        ({"training.budget_tokens": "many"}, r"'training.budget_tokens' is \d+ by default; got 'many'"),
        ({"training.budget_tokens": 0.5}, r"got 0.5, which is of another type"),
        ({"same_character": 1}, r"'same_character' is True by default; got 1"),
        ({"speech": {"rate_wpm": 100}}, r"'speech' is a group; change its fields: .*speech.rate_wpm"),
        ({"speech.reading": "words"}, r"reading must be 'phrases' or 'sentences', got 'words'"),
        ({"speech.pause_s": -0.1}, r"pause_s must not be negative, got -0.1"),
        ({"speech.speakers": []}, r"speakers is empty"),
        ({"items": 47}, r"items must be even, since they come in symmetric pairs; got 47"),
        ({"items": 0}, r"items must be at least 2, got 0"),
        ({"dev_stories": 0}, r"dev_stories must be at least 1, got 0"),
        ({"alignment_pairs": 1}, r"alignment_pairs must be at least 2, got 1"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", changes)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown preset 'huge'; choose from tiny, small, gpu"):
        preset("huge")


def test_settings_are_frozen():
    assert all(each.__dataclass_params__.frozen for each in (Preset, SpeechSettings, UnitSettings))
