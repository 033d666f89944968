"""`hf-clsi reproduce`: the whole experiment, from text to the report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .encode import comma_list

DESCRIPTION = """\
Run the whole experiment: write stories, speak them, fit the audio tokenizer, encode, train every recipe of
the paper's table, evaluate, and report. DIR then holds report.md, report.png, results.json, ledger.json,
items/ (one score a line), data/ and models/<recipe>/, which AutoModel loads. Nothing is downloaded.
"""

EPILOG = """\
example:
  hf-clsi reproduce --preset tiny --output-dir runs/tiny --seed 0

presets: tiny takes minutes on two cores, small about half an hour, gpu wants an accelerator.
"""


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "reproduce",
        parents=parents,
        help="the whole experiment in one command",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--preset", choices=("tiny", "small", "gpu"), default="tiny", help="size (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="processes for synthesis and training (default: the cores of this machine)",
    )
    parser.add_argument(
        "--recipes",
        type=comma_list,
        metavar="NAME,NAME",
        help="which to train, for example baseline-en-fr,interleave (default: all)",
    )
    parser.add_argument(
        "--split",
        choices=("test", "dev"),
        default="test",
        help="held-out content of the cloze items; make choices on dev (default: %(default)s)",
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="recordings paired across both languages, as `hf-clsi encode` takes them: alignment on them too",
    )
    add_changes(parser, "preset", "training.budget_tokens=400000")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew where DIR holds a run; else a run goes on"
    )
    parser.set_defaults(run=run)


def add_changes(parser: argparse._ActionsContainer, of: str, example: str) -> None:
    """The option `--set NAME=VALUE`, whose values are collected as `changes`."""
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help=f"change a setting of the {of}, for example {example} (may be repeated)",
    )


def setting(text: str) -> tuple[str, object]:
    """ "name=value" -> (name, value); the value is JSON, or else a plain string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got '{text}'")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def run(arguments: argparse.Namespace) -> None:
    from ..experiment.reproduce import reproduce

    reproduce(
        arguments.preset,
        arguments.output_dir,
        seed=arguments.seed,
        num_processes=arguments.num_processes,
        recipes=arguments.recipes,
        progress=arguments.progress,
        resume=not arguments.overwrite,
        split=arguments.split,
        recordings=arguments.recordings,
        changes=dict(arguments.changes),
    )
    print(f"report: {arguments.output_dir / 'report.md'}")
