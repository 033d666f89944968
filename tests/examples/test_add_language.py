"""examples/add_language.py from the command line to its files, on a small random checkpoint."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

from hf_clsi import (
    ClsiConfig,
    ClsiFeatureExtractor,
    ClsiForCausalLM,
    ClsiProcessor,
    ClsiUnitsConfig,
    ClsiUnitsModel,
)
from hf_clsi.processing_clsi import build_unit_tokenizer
from hf_clsi.rows.schema import story_columns
from hf_clsi.rows.shards import write_shards

NUM_UNITS = 12


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples/add_language.py"
    spec = importlib.util.spec_from_file_location("add_language", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Model, merges and embedded audio tokenizer of a bilingual run, never trained."""
    folder = tmp_path_factory.mktemp("bilingual")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        units = ClsiUnitsModel(ClsiUnitsConfig(num_units=NUM_UNITS)).eval()
        units.centroids.normal_()
        config = ClsiConfig(
            num_units=NUM_UNITS,
            num_merges=2,
            deduplicate=True,
            separator="bos",
            sampling_rate=16_000,
            audio_tokenizer_id="./audio_tokenizer",
            languages=["en", "fr"],
            text_config={
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            },
        )
        ClsiForCausalLM(config).save_pretrained(folder)
    extractor = ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=12.5)
    tokenizer = build_unit_tokenizer(NUM_UNITS, [(0, 1), (12, 2)])
    ClsiProcessor(extractor, tokenizer, units, deduplicate=True).save_pretrained(folder)
    return folder


def run(example, checkpoint, folder, *options):
    """The results of a short run, its random state kept inside."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            arguments = ["--model", checkpoint, "--output-dir", folder, "--rank", 2, "--num-processes", 1]
            return example.main([str(argument) for argument in (*arguments, *options)])
    finally:
        np.random.set_state(state)


def test_from_stories_to_a_merged_model(example, checkpoint, tmp_path, capsys):
    short = ("--stories", 6, "--items", 4, "--epochs", 1, "--batch-size", 3)
    results = run(example, checkpoint, tmp_path, *short, "--train-embeddings")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (results["training"]["rows"], results["training"]["steps"]) == (6, 2)
    assert results["logits"]["reloaded"] == 0.0
    assert results["logits"]["merged"] < 1e-5

    pairs = "en-en fr-fr de-de en-fr en-de fr-en fr-de de-en de-fr"
    assert [row["what"] for row in results["rows"]] == [pair.replace("-", " -> ") for pair in pairs.split()]
    for row in results["rows"]:
        assert row["n"] == 4
        for name in ("without", "with"):
            low, high = row[name]["ci95"]
            assert 0 <= low <= row[name]["value"] <= high <= 1
    table = capsys.readouterr().out
    assert "topic-cloze" in table
    assert "de -> de         4" in table

    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert "base_model.model.model.language_model.embed_tokens.weight" in adapter
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["ensure_weight_tying"]) == (2, True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is ClsiForCausalLM
    assert merged.config.languages == ["en", "fr", "de"]
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    assert processor.encode_audio(np.zeros(2560, dtype=np.float32), sampling_rate=16_000)[0].shape == (2,)
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.tensor([[merged.config.bos_token_id, 3, 4, 13]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)


def write_rows(folder, count):
    """Rows as `hf-clsi encode` writes them: German says English's units one higher."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        units = rng.integers(0, NUM_UNITS - 1, size=9).astype(np.uint16)
        rows.append({"story_id": f"r{number}", "speaker": "a", "units_en": [units], "units_de": [units + 1]})
    columns = story_columns(["en", "de"], text=False)
    write_shards(rows, folder, "train", kind="story", columns=columns)


def test_from_recordings_to_losses(example, checkpoint, tmp_path, capsys):
    write_rows(tmp_path / "rows", 40)
    options = ("--rows", tmp_path / "rows", "--epochs", 8, "--batch-size", 9, "--learning-rate", 3e-2)
    first = run(example, checkpoint, tmp_path / "a", *options)
    assert first["training"]["rows"] == 36  # every tenth is held out
    assert [(row["what"], row["n"]) for row in first["rows"]] == [("en", 4), ("de", 4)]
    for row in first["rows"]:  # a random model starts near log(17) = 2.83; there is something to learn
        assert row["with"]["value"] < row["without"]["value"]
    assert "nats/token" in capsys.readouterr().out
    assert "embed" not in " ".join(load_file(tmp_path / "a/adapter/adapter_model.safetensors"))

    again = run(example, checkpoint, tmp_path / "b", *options)
    assert again["rows"] == first["rows"]


def test_what_cannot_be_used_is_refused(example, checkpoint, tmp_path, capsys):
    write_rows(tmp_path / "rows", 19)
    with pytest.raises(ValueError, match=r"split 'train': 19 rows are too few; have 20 or more"):
        run(example, checkpoint, tmp_path / "out", "--rows", tmp_path / "rows")
    with pytest.raises(SystemExit):
        run(example, checkpoint, tmp_path / "out", "--languages", "de")
    assert "a known language and the new one" in capsys.readouterr().err


def test_the_seed_of_the_hold_out_comes_from_the_recipe(example, tmp_path):
    assert example.seed_of(tmp_path) == 0
    (tmp_path / "recipe.json").write_text('{"seed": 7}')
    assert example.seed_of(tmp_path) == 7


def test_items_are_the_miniatures_own_and_never_trained_on(example, checkpoint, tmp_path, monkeypatch):
    """Silent, so that many stories can be told: no (character, object) pair of an item is in training."""
    from hf_clsi.text.cloze import draw_items
    from hf_clsi.text.stories import Holdout, draw_stories

    told = {}

    class Silent:
        def __init__(self, reader, tokenizer):
            self.reader = reader

        def encode(self, sentences, num_threads, progress):
            told["sentences"] = sentences

        def story(self, language, story):
            told.setdefault("stories", []).append(story.plan)
            return [np.array([len(sentence[2])]) for sentence in self.reader.sentences(language, story)]

    monkeypatch.setattr(example, "SpokenText", Silent)
    args = example.parse(
        ["--model", "", "--output-dir", str(tmp_path), "--stories", "300", "--items", "48", "--seed", "5"]
    )
    processor = AutoProcessor.from_pretrained(checkpoint)
    merges = example.UnitMerges(NUM_UNITS)
    rows, cloze = example.tell_stories(args, ["en", "fr", "de"], processor, merges, 3)
    assert [row["story_id"] for row in rows] == [str(number) for number in range(300)]
    assert set(rows[0]) == {"story_id", "units_en", "units_de"}
    assert {len(items) for items in cloze.values()} == {48}
    assert told["sentences"] == sorted(set(told["sentences"]))

    holdout = Holdout(3)
    items = draw_items("topiccloze", 48, "test", "strict", holdout, 3)
    assert [item["id"] for item in cloze["de", "de"]] == [item.id for item in items]
    trained = list(draw_stories(300, "train", holdout, 5))
    assert trained == told["stories"][:600:2]
    pairs = {plan.pair for plan in trained} | {(plan.topic, plan.object, plan.friend) for plan in trained}
    assert pairs.isdisjoint({plan.pair for item in items for plan in (item.prompt, item.negative)})
