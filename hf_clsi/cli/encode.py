"""`hf-clsi encode`: recordings become a Parquet dataset of parallel rows with units."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..rows.encoding import EncodedSplit

DESCRIPTION = """\
Turn recordings into a Parquet dataset of parallel rows with units. INPUT is one of
  - a folder with a metadata.jsonl, or that file: one object a line, with id, audio_<L> (path) and text_<L>
    for every language L;
  - a folder with a sub-folder for every language, whose files pair up by name: en/x.flac, fr/x.flac;
  - a folder of recordings of one language, or a text file that lists them (--languages names the language).
WAV, FLAC, Ogg, Opus and MP3 files of any rate and any number of channels are read. After an interruption the
same command goes on behind the last shard that was written.
"""

EPILOG = """\
examples:
  a tokenizer fitted on the recordings themselves, saved in out/audio_tokenizer:
    hf-clsi encode shared/data/parallel_prompts_en_fr --output-dir out
  the tokenizer of a trained model, or Mimi:
    hf-clsi encode recordings/ --output-dir out --audio-tokenizer runs/tiny/models/interleave-ft
    hf-clsi encode recordings/ --output-dir out --audio-tokenizer kyutai/mimi --device cuda
"""


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "encode",
        parents=parents,
        help="recordings -> a dataset of units",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "input", metavar="INPUT", type=Path, help="folder, metadata.jsonl or list of recordings"
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="the dataset's folder")
    parser.add_argument("--split", default="test", help="which split of it to write (default: %(default)s)")
    parser.add_argument(
        "--languages", type=comma_list, metavar="L1,L2", help="languages and their order (default: all found)"
    )
    parser.add_argument("--keep-audio", action="store_true", help="store the recordings beside the units")
    parser.add_argument(
        "--on-error",
        choices=("skip", "refuse"),
        default="skip",
        help="leave out a file that cannot be used and list it in DIR/refused.jsonl, or stop at it "
        "(default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the split if it is there")

    tokenizer = add_tokenizer_options(
        parser,
        "DIR/audio_tokenizer, which is fitted on INPUT for the first split, with the options below",
    )
    tokenizer.add_argument("--seed", type=int, default=0, help="of the fit (default: %(default)s)")

    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-seconds", type=float, default=60.0, help="audio encoded at once (default: %(default)s)"
    )
    work.add_argument(
        "--max-rows-per-shard", type=int, metavar="N", help="(default: 100000, with --keep-audio 2000)"
    )
    work.add_argument("--device", help="where to encode, for example cuda (default: cpu)")
    parser.set_defaults(run=run)


def add_tokenizer_options(parser: argparse.ArgumentParser, default: str) -> argparse._ArgumentGroup:
    """The options that name an audio tokenizer, or say which one to fit."""
    group = parser.add_argument_group("audio tokenizer")
    group.add_argument(
        "--audio-tokenizer",
        metavar="NAME_OR_PATH",
        help="Hub id or folder of a ClsiUnitsModel or MimiModel, or of a model or a dataset that carries one "
        f"(default: {default})",
    )
    group.add_argument(
        "--num-units", type=int, default=64, help="size of its codebook (default: %(default)s)"
    )
    group.add_argument(
        "--frame-rate",
        type=float,
        choices=(12.5, 25.0, 50.0),
        default=12.5,
        help="its units a second (default: %(default)s)",
    )
    group.add_argument(
        "--duration-penalty",
        type=float,
        default=0.0,
        help="price of a change of unit; above 0, units last longer (default: %(default)s)",
    )
    return group


def run(arguments: argparse.Namespace) -> None:
    from ..rows.encoding import encode_recordings

    record = encode_recordings(
        arguments.input,
        arguments.output_dir,
        split=arguments.split,
        languages=arguments.languages,
        audio_tokenizer=arguments.audio_tokenizer,
        num_units=arguments.num_units,
        frame_rate_hz=arguments.frame_rate,
        duration_penalty=arguments.duration_penalty,
        seed=arguments.seed,
        keep_audio=arguments.keep_audio,
        batch_seconds=arguments.batch_seconds,
        max_rows_per_shard=arguments.max_rows_per_shard,
        on_error=arguments.on_error,
        overwrite=arguments.overwrite,
        device=arguments.device,
        progress=arguments.progress,
    )
    print(describe(record, arguments.output_dir))


def describe(record: EncodedSplit, folder: Path) -> str:
    """What was written, in a few lines for people."""
    shards = "1 shard" if record.num_shards == 1 else f"{record.num_shards} shards"
    lines = [f"{folder}: split {record.split!r}, {record.rows:,} rows in {shards}"]
    for language in record.languages:
        lines.append(
            f"  {language}: {record.clips[language]:,} clips, {record.seconds[language]:,.1f} s, "
            f"{record.units[language]:,} units"
        )
    lines.append(
        f"audio tokenizer: {record.audio_tokenizer}, {record.tokenizer_origin}; {record.num_units:,} units, "
        f"{record.frame_rate_hz:g} a second"
    )
    if record.refused:
        reasons = ", ".join(f"{reason} {number}" for reason, number in record.refused.items())
        rows = "1 row" if record.rows_refused == 1 else f"{record.rows_refused:,} rows"
        lines.append(f"refused: {rows} ({reasons}), listed in {folder / 'refused.jsonl'}")
    else:
        lines.append("refused: nothing")
    lines.append(f'load it: datasets.load_dataset("{folder}", split="{record.split}")')
    return "\n".join(lines)


def comma_list(text: str) -> list[str]:
    """`"en, fr"` -> `["en", "fr"]`."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names joined by commas, got {text!r}")
    return names
