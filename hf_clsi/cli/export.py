"""`hf-clsi export`: a model of units becomes a plain checkpoint that engines made for text serve."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

DESCRIPTION = """\
Write a model as a plain checkpoint of its decoder (Qwen2ForCausalLM, LlamaForCausalLM, ...): the same weights
and the same token ids, a tokenizer that reads and writes units as <|u17|>, and no remote code. Plain
transformers and engines that serve its class load it. What was written is loaded again and compared with the
model. docs/serving.md shows how to ask for a continuation and how to hear it.
"""

EPILOG = """\
examples:
  hf-clsi export runs/tiny/models/interleave-ft --output-dir served
  hf-clsi export clsi/slm-360m --output-dir served --dtype bfloat16 --max-shard-size 5GB
"""


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        parents=parents,
        help="a model -> a plain checkpoint for vLLM and the like",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder or Hub id of a model, or of an adapter, which is merged"
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number type of the weights (default: the model's)",
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest file of weights, for example 5GB")
    parser.add_argument(
        "--as-llama",
        action="store_true",
        help="write a Qwen2 as the Llama that computes the same; needed where its units are merged or "
        "deduplicated, since transformers replaces the tokenizer of Qwen2 folders",
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare the result with the model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..hub.export import export_model, vllm_command

    if not arguments.progress:
        logging.disable_progress_bar()
    folder = export_model(
        arguments.model,
        arguments.output_dir,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        as_llama=arguments.as_llama,
        verify=arguments.verify,
        overwrite=arguments.overwrite,
    )
    print(describe(folder))
    print(f"serve it: {vllm_command(folder)}")


def describe(folder: Path) -> str:
    """What was written, in a line for people."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = list(folder.glob("*.safetensors"))
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    files = "1 file" if len(weights) == 1 else f"{len(weights)} files"
    return (
        f"{folder}: {config['architectures'][0]}, {config['vocab_size']:,} tokens, {config['dtype']}, "
        f"{megabytes:,.1f} MB in {files}"
    )
