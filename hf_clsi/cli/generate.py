"""`hf-clsi generate`: speech files become WAV files of their continuations."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Continue speech. For every INPUT, DIR receives its continuation and, unless --no-joined is given, prompt and
continuation in one file, both WAV; and generations.jsonl there one line for each continuation: its prompt,
files, units and seconds. An INPUT that cannot be used is reported, and the others go on.
"""

EPILOG = """\
examples:
  hf-clsi generate runs/tiny/models/interleave-ft prompt.wav --output-dir out
  hf-clsi generate clsi/slm-1b prompts/*.flac --output-dir out --seconds 10 --temperature 0.8 --device cuda
"""


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        parents=parents,
        help="speech -> its continuation",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="Hub id or folder of a model with its processor, or of an adapter"
    )
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help="audio files: WAV, FLAC, Ogg, Opus, MP3"
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--no-joined", dest="joined", action="store_false", help="write continuations alone")

    drawing = parser.add_argument_group("generation")
    drawing.add_argument(
        "--seconds", type=float, default=5.0, help="longest continuation (default: %(default)s)"
    )
    drawing.add_argument(
        "--continuations", type=int, default=1, metavar="N", help="of each input (default: %(default)s)"
    )
    for option, kind, meaning in (
        ("--temperature", float, "below 1, likelier tokens more often"),
        ("--top-k", int, "draw from the k likeliest tokens; 0: from all"),
        ("--top-p", float, "draw from the likeliest tokens that together have this probability"),
    ):
        drawing.add_argument(
            option, type=kind, help=f"{meaning} (default: the checkpoint's, or the library's)"
        )
    drawing.add_argument("--greedy", action="store_true", help="the likeliest token each time; draws nothing")
    drawing.add_argument("--num-beams", type=int, default=1, help="beam search (default: %(default)s)")
    drawing.add_argument(
        "--seed", type=int, default=0, help="of every input's drawing (default: %(default)s)"
    )

    work = parser.add_argument_group("work")
    work.add_argument("--device", help="for example cuda (default: an accelerator if there is one)")
    work.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="(default: the checkpoint's)"
    )
    work.add_argument("--revision", help="branch, tag or commit of MODEL on the Hub")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import json
    import sys

    from tqdm import tqdm
    from transformers import pipeline

    from ..speech.audio import read_audio, write_audio

    settings = {"max_new_seconds": arguments.seconds, "num_return_sequences": arguments.continuations}
    if arguments.seconds <= 0 or arguments.continuations < 1:
        raise ValueError(
            "--seconds must be positive and --continuations at least 1, got "
            f"{arguments.seconds:g} and {arguments.continuations}."
        )
    if arguments.greedy or arguments.num_beams > 1:
        if arguments.continuations > arguments.num_beams:
            raise ValueError(
                f"--continuations {arguments.continuations} of one input would be the same without drawing; "
                "leave --greedy and --num-beams out, or ask for no more continuations than beams."
            )
        settings |= {"do_sample": False, "num_beams": arguments.num_beams}
    else:
        given = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
        settings |= {"do_sample": True, **{name: value for name, value in given.items() if value is not None}}

    names = _names(arguments.inputs)
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "generations.jsonl"
    kinds = ("continuation", "joined")[: 1 + arguments.joined]
    files = [
        [
            [folder / f"{name}{number}.{kind}.wav" for kind in kinds]
            for number in _numbers(arguments.continuations)
        ]
        for name in names
    ]
    taken = [each for group in files for targets in group for each in targets if each.exists()]
    taken += [record] if record.exists() else []
    if taken and not arguments.overwrite:
        raise ValueError(f"{taken[0]} is there already. Choose another --output-dir, or pass --overwrite.")

    speak = pipeline(
        "speech-continuation",
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype or "auto",
        revision=arguments.revision,
    )
    refused = 0
    with record.open("w", encoding="utf-8") as lines:
        work = list(zip(arguments.inputs, files, strict=True))
        for path, group in tqdm(work, unit="prompt", disable=not arguments.progress):
            try:
                prompt, rate = read_audio(path, None)  # stricter than the pipeline's: files cut short
                results = speak(
                    prompt, sampling_rate=rate, seed=arguments.seed, return_prompt=True, **settings
                )
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                reason = reason if str(path) in reason else f"{path}: {reason}"
                tqdm.write(f"refused: {reason}", file=sys.stderr)
                refused += 1
                continue
            results = results if isinstance(results, list) else [results]
            for result, targets in zip(results, group, strict=True):
                for kind, target in zip(("audio", "joined"), targets, strict=False):
                    write_audio(target, result[kind], result["sampling_rate"])
                entry = {
                    "prompt": path.name,
                    "files": [target.name for target in targets],
                    "prompt_seconds": round(len(result["prompt"]) / result["sampling_rate"], 3),
                    "seconds": round(result["seconds"], 3),
                    "seed": arguments.seed if settings["do_sample"] else None,
                    "units": result["units"].tolist(),
                }
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
                tqdm.write(f"{targets[-1]}: {entry['prompt_seconds']:.1f} s + {entry['seconds']:.1f} s")
    if refused:
        raise RuntimeError(f"{refused} of {len(arguments.inputs)} inputs were refused, for the reasons above")


def _names(paths: list[Path]) -> list[str]:
    """A name for the files of each input: its own, or with a number where two would be the same."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names


def _numbers(continuations: int) -> list[str]:
    """What tells the continuations of one input apart: nothing where there is only one."""
    return [""] if continuations == 1 else [f".{number}" for number in range(1, continuations + 1)]
