"""`hf-clsi export` from the command line to the folder."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_clsi import ClsiConfig, ClsiFeatureExtractor, ClsiForCausalLM, ClsiProcessor
from hf_clsi.cli import main as cli_main
from hf_clsi.cli.main import main
from hf_clsi.processing_clsi import build_unit_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def slm(tmp_path):
    """A Qwen2 with merges, as a user would have it."""
    torch.manual_seed(0)
    tokenizer = build_unit_tokenizer(20, [(7, 8)])
    ClsiProcessor(ClsiFeatureExtractor(), tokenizer, deduplicate=True).save_pretrained(tmp_path / "slm")
    decoder = {"model_type": "qwen2", "num_key_value_heads": 2, "max_position_embeddings": 64, **SIZES}
    config = ClsiConfig(num_units=20, num_merges=1, deduplicate=True, text_config=decoder)
    ClsiForCausalLM(config).save_pretrained(tmp_path / "slm")
    return tmp_path / "slm"


def test_help_shows_examples_that_parse(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--help"])
    assert stop.value.code == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if "  hf-clsi export" in line]
    assert len(lines) == 2
    for line in lines:
        assert cli_main.build_parser().parse_args(line).command == "export"


def test_export_writes_a_model_and_says_how_to_serve_it(slm, tmp_path, capsys):
    out = tmp_path / "a model"  # to be quoted in the command
    assert main(["export", str(slm), "--output-dir", str(out), "--as-llama", "--no-progress"]) == 0
    captured = capsys.readouterr()
    size = (out / "model.safetensors").stat().st_size / 1e6
    assert captured.out.splitlines() == [
        f"{out}: LlamaForCausalLM, 24 tokens, float32, {size:.1f} MB in 1 file",
        f"serve it: vllm serve '{out}' --served-model-name 'a model' --max-model-len 64 --dtype float32",
    ]
    assert "verified: every weight is the same, logits differ by at most 0" in captured.err
    assert type(AutoModelForCausalLM.from_pretrained(out)).__name__ == "LlamaForCausalLM"


def test_options_reach_the_export(slm, tmp_path, capsys):
    line = f"export {slm} --output-dir {tmp_path / 'out'} --as-llama --no-progress".split()
    assert main(line) == 0
    assert main(line) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main([*line, "--overwrite", "--dtype", "bfloat16", "--max-shard-size", "10KB", "--no-verify"]) == 0
    captured = capsys.readouterr()
    assert (
        "bfloat16" in captured.out and "MB in 1 file" not in captured.out and "verified" not in captured.err
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("slm", "error: transformers .* reads the tokenizer of a folder of type 'qwen2' .*--as-llama"),
        ("nothing", "error: "),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(slm, tmp_path, capsys, model, message):
    line = f"export {tmp_path / model} --output-dir {tmp_path / 'out'} --no-progress".split()
    assert main(line) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert re.match(message, last)
    assert [path.name for path in tmp_path.iterdir()] == ["slm"]


@pytest.mark.parametrize("line", ["export", "export slm", "export slm --output-dir out --dtype int8"])
def test_wrong_usage_is_exit_code_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert "usage: hf-clsi export" in capsys.readouterr().err
