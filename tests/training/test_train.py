"""A dataset folder and a recipe become a trained model: what is written, gone on with, and refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, LlamaConfig, LlamaForCausalLM

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.modeling_clsi_units import ClsiUnitsModel
from hf_clsi.rows.shards import write_shards
from hf_clsi.training.recipes import Recipe, recipe
from hf_clsi.training.settings import read_file, to_yaml, with_changes
from hf_clsi.training.sizes import SIZES
from hf_clsi.training.train import (
    TrainSettings,
    effective,
    find_vocabulary,
    make_model,
    recipe_of,
    sizes_of_data,
    train,
)
from hf_clsi.units.merges import UnitMerges

CHANGES = {
    "budget_tokens": 4000,
    "batch.tokens_per_step": 200,
    "batch.max_length": 64,
    "model.text_config.hidden_size": 16,
    "model.text_config.intermediate_size": 32,
    "model.text_config.num_hidden_layers": 1,
    "model.text_config.num_attention_heads": 2,
    "model.text_config.num_key_value_heads": 2,
}
PLAN = with_changes(recipe("interleave-ft", SIZES["tiny"]), CHANGES)


def stories(count=24, seed=0):
    """English units below 8, French ones from 8 to 15."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        sentences = int(rng.integers(2, 6))
        row = {"story_id": f"story-{index}", "speaker": "nobody"}
        for first, code in ((0, "en"), (8, "fr")):
            row[f"units_{code}"] = [
                rng.integers(first, first + 8, rng.integers(4, 12)).astype(np.uint16)
                for _ in range(sentences)
            ]
        yield row


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset folder that carries its audio tokenizer, as `hf-clsi build` leaves one."""
    folder = tmp_path_factory.mktemp("stories")
    write_shards(stories(), folder, "train", max_rows_per_shard=10)
    torch.manual_seed(0)
    ClsiUnitsModel(ClsiUnitsConfig(num_units=16)).save_pretrained(folder / "audio_tokenizer")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def settings(data, cache, tmp_path):
    return TrainSettings(
        PLAN, (str(data),), tmp_path / "run", cache_dir=cache, logging_steps=4, progress=False
    )


@pytest.fixture(scope="module")
def trained(data, cache, tmp_path_factory):
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainSettings(PLAN, (str(data),), folder, cache_dir=cache, logging_steps=4, progress=False))
    return folder


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what a run leaves ---------------------------------------------------------------------------------------


def test_the_folder_of_a_run(trained):
    names = {path.name for path in trained.iterdir() if not path.name.startswith("checkpoint-")}
    assert names == {"settings.yaml", "recipe.json", "run.json", "ledger.json", "curve.jsonl", "model"}
    ledger = json.loads((trained / "ledger.json").read_text())
    assert [stage["steps"] for stage in ledger["stages"]] == [10, 4, 6]
    assert ledger["total"]["tokens"] == {"en": 3000, "fr": 1000}
    assert ledger["total"]["units"] == {"en": 3000, "fr": 1000}
    curve = [json.loads(line) for line in (trained / "curve.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in curve] == [
        ("en", 1), ("en", 4), ("en", 8), ("en", 10), ("interleaved", 1), ("interleaved", 4),
        ("fine-tuning", 1), ("fine-tuning", 4), ("fine-tuning", 6),
    ]  # fmt: skip
    assert curve[-1]["tokens"] == 4000
    run = json.loads((trained / "run.json").read_text())
    assert (run["num_units"], run["num_merges"], run["processes"]) == (16, 0, 1)


def test_the_settings_of_a_run_are_complete_and_its_recipe_again(trained):
    for name in ("settings.yaml", "recipe.json"):
        assert Recipe.from_dict(read_file(trained / name)) == PLAN
        assert recipe_of(trained / name) == PLAN
    assert set(read_file(trained / "settings.yaml")) == set(PLAN.to_dict())


def test_the_model_loads_with_its_processor_and_audio_tokenizer(trained):
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    processor = AutoProcessor.from_pretrained(trained / "model")
    processor.check_model(model)
    assert model.config.languages == ["en", "fr"] and model.config.audio_tokenizer_id == "./audio_tokenizer"
    assert processor.audio_tokenizer.config.num_units == 16
    tokens = model.generate(**processor(units=[[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert processor.batch_decode(tokens)[0].dtype == np.float32
    assert model.dtype == torch.float32 and not model.training


def test_the_saved_settings_give_the_same_model(trained, settings):
    train(replace(settings, recipe=recipe_of(trained / "settings.yaml")))
    assert equal(weights(settings.output_dir), weights(trained))
    for name in ("ledger.json", "curve.jsonl"):
        assert (settings.output_dir / name).read_text() == (trained / name).read_text()


def test_merges_of_units_are_read_as_tokens(settings, tmp_path):
    rows = list(stories())
    sentences = [each for row in rows for code in ("en", "fr") for each in row[f"units_{code}"]]
    merges = UnitMerges.learn(sentences, 16, 5, deduplicate=True, show_progress=False)
    merges.save(tmp_path / "merges")
    model = train(replace(settings, merges=str(tmp_path / "merges")))
    config = AutoModelForCausalLM.from_pretrained(model).config
    assert (config.num_merges, config.deduplicate, config.vocab_size) == (5, True, 24)
    ledger = json.loads((settings.output_dir / "ledger.json").read_text())["total"]
    assert sum(ledger["tokens"].values()) == 4000 < sum(ledger["units"].values())
    units = [3, 3, 1, 2]
    assert (
        AutoProcessor.from_pretrained(model).encode_units(units).tolist()
        == merges.encode([np.array(units)])[0].tolist()
    )


# -- going on ------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_last_checkpoint_to_the_same_end(trained, settings):
    train(replace(settings, save_steps=6))
    folder = settings.output_dir
    kept = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    assert kept == [18, 20]
    shutil.rmtree(folder / "checkpoint-20")
    shutil.rmtree(folder / "model")
    (folder / "ledger.json").unlink()
    train(replace(settings, save_steps=6, resume=True))
    assert equal(weights(folder), weights(trained))
    assert (folder / "ledger.json").read_text() == (trained / "ledger.json").read_text()
    assert (folder / "curve.jsonl").read_text() == (trained / "curve.jsonl").read_text()


def test_a_finished_run_is_not_run_again(trained, settings):
    shutil.copytree(trained, settings.output_dir)
    shutil.rmtree(settings.output_dir / "model")
    before = (settings.output_dir / "checkpoint-20" / "COMPLETE").stat().st_mtime_ns
    train(settings)
    assert (settings.output_dir / "checkpoint-20" / "COMPLETE").stat().st_mtime_ns == before
    assert equal(weights(settings.output_dir), weights(trained))


def test_other_settings_are_refused_and_change_nothing(trained, settings):
    other = replace(settings, output_dir=trained, recipe=replace(PLAN, seed=1))
    before = (trained / "settings.yaml").read_text()
    with pytest.raises(ValueError, match=r"holds a run of other settings: seed is 0, not 1\. .*--overwrite"):
        train(other)
    assert (trained / "settings.yaml").read_text() == before


def test_overwriting_begins_anew(trained, settings):
    shutil.copytree(trained, settings.output_dir)
    short = with_changes(PLAN, {"budget_tokens": 400, "seed": 3})
    train(replace(settings, recipe=short, resume=False))
    assert Recipe.from_dict(read_file(settings.output_dir / "settings.yaml")) == short
    assert json.loads((settings.output_dir / "ledger.json").read_text())["total"]["steps"] == 4
    assert not (settings.output_dir / "checkpoint-20").exists()


def test_a_folder_of_something_else_is_refused(settings):
    settings.output_dir.mkdir()
    (settings.output_dir / "thesis.tex").write_text("years of work")
    for resume in (None, False):
        with pytest.raises(ValueError, match="holds something that is no run of hf-clsi train"):
            train(replace(settings, resume=resume))
    assert (settings.output_dir / "thesis.tex").read_text() == "years of work"


def test_going_on_needs_a_checkpoint(settings):
    with pytest.raises(ValueError, match="holds no complete checkpoint to go on from"):
        train(replace(settings, resume=True))
    assert not settings.output_dir.exists()


# -- where a model begins ------------------------------------------------------------------------------------


@pytest.fixture
def text_model(tmp_path):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=96, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "text")
    return tmp_path / "text", model.state_dict()


def test_a_model_begins_with_the_body_of_a_text_model(data, text_model):
    folder, body = text_model
    plan = with_changes(PLAN, {"model.initialize_from": str(folder)})
    vocabulary = find_vocabulary([str(data)])
    model = make_model(plan, vocabulary)
    state = model.state_dict()
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(state[f"model.language_model.{name}"], body[f"model.{name}"])
    assert model.config.languages == ["en", "fr"] and model.config.separator == "bos"
    assert model.get_input_embeddings().weight.shape == (19, 24)
    # The decoder's settings are the text model's, so that the saved recipe describes what was trained.
    said = effective(plan, model).model.text_config
    assert (said["model_type"], said["hidden_size"], said["attention_bias"]) == ("llama", 24, True)
    assert not {"vocab_size", "bos_token_id", "dtype"} & set(said)
    again = effective(plan, model)
    assert effective(again, make_model(again, vocabulary)) == again
    assert Recipe.from_dict(again.to_dict()) == again


def test_a_run_from_a_text_model_goes_on_without_it(settings, text_model):
    folder, _ = text_model
    settings = replace(
        settings,
        recipe=with_changes(PLAN, {"model.initialize_from": str(folder), "budget_tokens": 800}),
        save_steps=2,
    )
    train(settings)
    finished = weights(settings.output_dir)
    saved = Recipe.from_dict(read_file(settings.output_dir / "settings.yaml"))
    assert saved.model.text_config["hidden_size"] == 24
    shutil.rmtree(folder)
    shutil.rmtree(settings.output_dir / "checkpoint-4")
    train(settings)
    assert equal(weights(settings.output_dir), finished)
    assert finished["lm_head.weight"].shape == (19, 24)


def test_rows_longer_than_the_context_are_refused(settings):
    plan = with_changes(PLAN, {"model.text_config.max_position_embeddings": 32})
    with pytest.raises(
        ValueError, match=r"batch\.max_length is 64, but the decoder's context holds 32 tokens"
    ):
        train(replace(settings, recipe=plan))


def test_a_size_of_the_paper_agrees_with_what_it_builds():
    """Checked on the meta device, for what the text model's own config would say."""
    plan = recipe("interleave", SIZES["360m"])
    with torch.device("meta"):
        model = make_model(with_changes(plan, {"model.initialize_from": None}), find_vocabulary())
    assert effective(plan, model) == plan


# -- recipes -------------------------------------------------------------------------------------------------


def test_a_named_recipe_is_tiny_unless_told_otherwise():
    assert recipe_of("interleave") == recipe("interleave", SIZES["tiny"])
    assert recipe_of("baseline-fr", size_name="1b", languages=["de", "it"], seed=4) == recipe(
        "baseline-fr", SIZES["1b"], ["de", "it"], 4
    )
    assert recipe_of("interleave", changes=CHANGES) == with_changes(
        recipe("interleave", SIZES["tiny"]), CHANGES
    )


def test_a_file_may_leave_to_a_size_what_it_does_not_say(tmp_path):
    stage = {"name": "all", "mode": "interleaved", "parts": {"*": 10}}
    own = {"name": "mine", "languages": ["en", "fr", "de"], "stages": [stage], "budget_tokens": 1000}
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(own))
    plan = recipe_of(path, size_name="360m", seed=2)
    assert (plan.budget_tokens, plan.seed, plan.languages) == (1000, 2, ("en", "fr", "de"))
    assert (plan.model, plan.batch) == (SIZES["360m"].model, SIZES["360m"].batch)
    with pytest.raises(ValueError, match=r"mine\.yaml: setting 'model' is missing"):
        recipe_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nmae: x", r"mine\.yaml: unknown setting 'nmae': .* Did you mean 'name'\?"),
        ("- 1", r"mine\.yaml: the file must be a group of settings, got \[1\]"),
        ("name: [", r"mine\.yaml cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    for size_name in (None, "tiny"):
        with pytest.raises(ValueError, match=message):
            recipe_of(path, size_name=size_name)


def test_languages_of_a_file_are_its_own(trained):
    with pytest.raises(ValueError, match=r"settings\.yaml names its languages itself"):
        recipe_of(trained / "settings.yaml", languages=["en", "de"])


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        recipe_of("nowhere/mine.yaml")


@pytest.mark.parametrize("name", ["interleaved", "nowhere"])
def test_a_name_that_is_no_recipe(name):
    with pytest.raises(ValueError, match=f"unknown recipe '{name}'; choose from baseline-en"):
        recipe_of(name)


# -- data and vocabulary -------------------------------------------------------------------------------------


def test_the_vocabulary_is_that_of_the_audio_tokenizer_in_the_dataset(data):
    found = find_vocabulary([str(data)])
    assert (found.merges.num_units, found.merges.num_merges) == (16, 0)
    assert (found.frame_rate_hz, found.sampling_rate_hz) == (12.5, 16_000)
    assert found.audio_tokenizer == str(data / "audio_tokenizer")


def test_without_any_hint_the_vocabulary_is_mimis(tmp_path):
    for places in ((), (str(tmp_path),), ("somebody/stories",)):
        found = find_vocabulary(places)
        assert (found.merges.num_units, found.frame_rate_hz, found.sampling_rate_hz) == (2048, 12.5, 24_000)
        assert found.audio_tokenizer == "kyutai/mimi"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("build.json", {"audio_tokenizer": "kyutai/mimi", "num_units": 2048}),
        (
            "encoding.json",
            {"train": {"audio_tokenizer": "kyutai/mimi"}, "test": {"audio_tokenizer": "kyutai/mimi"}},
        ),
    ],
)
def test_a_dataset_names_its_audio_tokenizer(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    assert find_vocabulary([str(tmp_path)]).audio_tokenizer == "kyutai/mimi"
    with pytest.raises(ValueError, match=r"num_units 500, the audio tokenizer kyutai/mimi 2048"):
        find_vocabulary([str(tmp_path)], num_units=500)


def test_the_size_of_the_codebook_alone_is_enough():
    found = find_vocabulary(["somebody/stories"], num_units=500)
    assert (found.merges.num_units, found.audio_tokenizer) == (500, None)


def test_something_else_is_no_audio_tokenizer(tmp_path):
    LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'llama', which is no audio tokenizer"):
        find_vocabulary([], audio_tokenizer=str(tmp_path))


def test_the_sizes_of_the_data(data, cache):
    sizes = sizes_of_data(PLAN, [str(data)], find_vocabulary([str(data)]), cache_dir=cache, progress=False)
    rows = list(stories())
    for code in ("en", "fr"):
        total = sum(len(sentence) for row in rows for sentence in row[f"units_{code}"])
        assert (sizes[code].tokens, sizes[code].raw, sizes[code].aligned) == (total, total, total)
        assert sizes[code].documents == 24


def test_units_of_another_codebook_are_refused(settings, tmp_path):
    write_shards(stories(), tmp_path / "plain", "train")
    with pytest.raises(ValueError, match=r"units outside 0\.\.7"):
        train(replace(settings, data=(str(tmp_path / "plain"),), num_units=8))


@pytest.mark.parametrize("changes", [{"data": ()}, {"logging_steps": 0}, {"save_steps": 0}])
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=r"there is no data|must be at least 1, got 0"):
        TrainSettings(**{"recipe": PLAN, "data": ("x",), "output_dir": Path("x"), **changes})
