"""auto.register: the Auto classes know us, and our checkpoints load where hf_clsi does not exist."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
)

import hf_clsi
from hf_clsi import (
    ClsiConfig,
    ClsiFeatureExtractor,
    ClsiForCausalLM,
    ClsiModel,
    ClsiProcessor,
    ClsiUnitsConfig,
    ClsiUnitsModel,
)
from hf_clsi.auto import register
from hf_clsi.processing_clsi import build_unit_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Model, processor and embedded audio tokenizer in one folder, as a user would save them."""
    folder = tmp_path_factory.mktemp("made-elsewhere") / "slm"
    torch.manual_seed(0)
    units = ClsiUnitsModel(ClsiUnitsConfig(num_units=30)).eval()
    units.centroids.normal_()
    units.centroid_mels.normal_(mean=-3.0)
    extractor = ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=12.5)
    tokenizer = build_unit_tokenizer(30, [(7, 8), (30, 9)])
    ClsiProcessor(extractor, tokenizer, units, deduplicate=True).save_pretrained(folder)
    config = ClsiConfig(
        num_units=30,
        num_merges=2,
        deduplicate=True,
        sampling_rate=16_000,
        audio_tokenizer_id="./audio_tokenizer",
        text_config={"model_type": "qwen2", "num_key_value_heads": 2, **SIZES},
    )
    ClsiForCausalLM(config).save_pretrained(folder)
    return folder


def test_auto_classes_load_our_classes(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is ClsiConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is ClsiModel
    assert type(AutoModelForCausalLM.from_pretrained(checkpoint)) is ClsiForCausalLM
    assert type(AutoFeatureExtractor.from_pretrained(checkpoint)) is ClsiFeatureExtractor
    assert AutoTokenizer.from_pretrained(checkpoint).bos_token_id == 32
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(processor) is ClsiProcessor
    assert type(processor.audio_tokenizer) is ClsiUnitsModel
    for auto_class in (AutoModelForAudioTokenization, AutoModel):
        assert type(auto_class.from_pretrained(checkpoint / "audio_tokenizer")) is ClsiUnitsModel


def test_register_may_be_called_again():
    register()
    register()
    assert type(AutoConfig.for_model("clsi", num_units=5, text_config=SIZES)) is ClsiConfig


def test_contract_names_are_importable():
    expected = {
        "ClsiConfig",
        "ClsiModel",
        "ClsiForCausalLM",
        "ClsiFeatureExtractor",
        "ClsiProcessor",
        "ClsiUnitsConfig",
        "ClsiUnitsModel",
        "InterleavingDataCollator",
        "InterleavingCallback",
        "score_items",
        "cross_lingual_alignment",
    }
    assert set(hf_clsi.__all__) == expected
    for name in expected:
        assert getattr(hf_clsi, name).__name__ == name
    assert expected <= set(dir(hf_clsi))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hf_clsi.nothing  # noqa: B018


def test_checkpoint_carries_its_code(checkpoint):
    assert sorted(path.name for path in checkpoint.glob("*.py")) == [
        "configuration_clsi.py",
        "feature_extraction_clsi.py",
        "modeling_clsi.py",
        "processing_clsi.py",
    ]
    assert sorted(path.name for path in (checkpoint / "audio_tokenizer").glob("*.py")) == [
        "configuration_clsi_units.py",
        "modeling_clsi_units.py",
    ]


def run_elsewhere(tmp_path, code, **environment):
    """Run Python code elsewhere, in a process that cannot import hf_clsi; return its last line as JSON."""
    block = "import sys\nsys.modules['hf_clsi'] = None\nimport torch\ntorch.set_num_threads(1)\n"
    result = subprocess.run(
        [sys.executable, "-c", block + code],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,  # the assertion below shows what went wrong
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "hf_clsi" not in result.stdout
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


LOAD = """
import json, numpy as np
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization,
                          AutoModelForCausalLM, AutoProcessor)
name = {name!r}
trust = {{"trust_remote_code": True}}
processor = AutoProcessor.from_pretrained(name, **trust)
audio = np.load({audio!r})
prompt = processor(audio, sampling_rate=16000)
model = AutoModelForCausalLM.from_pretrained(name, **trust)
ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)
loaded = [AutoConfig.from_pretrained(name, **trust), model, AutoModel.from_pretrained(name, **trust),
          AutoFeatureExtractor.from_pretrained(name, **trust), processor, processor.audio_tokenizer]
if {local!r}:
    loaded.append(AutoModelForAudioTokenization.from_pretrained(name + "/audio_tokenizer", **trust))
    model.save_pretrained("again")
    processor.save_pretrained("again")
    again = AutoModel.from_pretrained("again", **trust)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert AutoProcessor.from_pretrained("again", **trust).audio_tokenizer is not None
print(json.dumps({{
    "classes": [type(each).__name__ for each in loaded],
    "modules": sorted({{type(each).__module__.split(".")[0] for each in loaded}}),
    "ids": ids.tolist(),
    "samples": len(processor.decode(ids[0])),
    "loss": float(model(input_ids=ids, labels=ids).loss),
}}))
"""


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_checkpoint_loads_where_hf_clsi_does_not_exist(source, checkpoint, tmp_path):
    audio = (np.random.default_rng(0).normal(size=20_000) * np.linspace(0.01, 0.3, 20_000)).astype(np.float32)
    np.save(tmp_path / "audio.npy", audio)
    if source == "folder":
        name = str(shutil.copytree(checkpoint, tmp_path / "copied-slm"))
    else:  # as huggingface_hub lays out its cache
        name, revision = "someone/slm-tiny", "0123456789abcdef0123456789abcdef01234567"
        cache = tmp_path / "hf" / "hub" / "models--someone--slm-tiny"
        shutil.copytree(checkpoint, cache / "snapshots" / revision)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(revision)
    code = LOAD.format(name=name, audio=str(tmp_path / "audio.npy"), local=source == "folder")
    there, errors = run_elsewhere(tmp_path, code)

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = processor(audio, sampling_rate=16_000)
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    expected = [
        "ClsiConfig",
        "ClsiForCausalLM",
        "ClsiModel",
        "ClsiFeatureExtractor",
        "ClsiProcessor",
        "ClsiUnitsModel",
    ]
    assert there["classes"] == expected + ["ClsiUnitsModel"] * (source == "folder")
    assert there["modules"] == ["transformers_modules"]
    assert there["ids"] == ids.tolist()
    assert there["samples"] == len(processor.decode(ids[0])) > 0
    assert there["loss"] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=1e-5)
    for noise in ("LOAD REPORT", "UNEXPECTED", "MISSING", "newly initialized"):
        assert noise not in errors
