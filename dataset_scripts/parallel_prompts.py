"""Builds `clsi/parallel-prompts` from the Asterisk core sounds in English and French, paired by file name.

    python dataset_scripts/parallel_prompts.py --source parallel_prompts_en_fr --output-dir parallel-prompts

The source is a folder with metadata.jsonl (id, audio_en, text_en, audio_fr, text_fr), recordings and their
README.md. What the card says of these recordings stands here, as that README has it; what it says of sizes is
measured. dataset_scripts/parallel_prompts.md is the card of the published build.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from hf_clsi.rows.parallel_prompts import build_parallel_prompts

SPEAKERS = {"en": "Allison Smith", "fr": "June Wallack"}
SUMMARY = (
    "Prompts of a telephone system, read sentence by sentence in English (US) and in French (Canada) by two "
    "professional speakers, as sound, text and discrete speech units."
)
LIMITS = (
    "One speaker a language, both of them women.",
    "Telephone prompts, each by itself; digits, letters, tones and recordings over 8 s were left out.",
    "The transcripts are the recordings' own and are not always word for word.",
    "The French is that of Canada, the English that of the United States.",
    "The sound is 16 kHz mono FLAC, decoded from G.722 originals at 16 kHz.",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the dataset clsi/parallel-prompts.")
    parser.add_argument("--source", type=Path, required=True, help="folder of the recordings")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("parallel-prompts"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--audio-tokenizer",
        metavar="NAME_OR_PATH",
        help="Hub id or folder (default: the embedded one, fitted on the recordings: 64 units, 12.5 Hz)",
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="show no bars")
    options = parser.parse_args(arguments)

    readme = options.source / "README.md"
    if not readme.is_file() or "Asterisk core sounds" not in readme.read_text(encoding="utf-8"):
        parser.error(
            f"{options.source} is not the folder of the Asterisk core sounds, which the card is about; for "
            "other recordings use `hf-clsi build parallel-prompts`"
        )
    words = ["python", "dataset_scripts/parallel_prompts.py", "--source", options.source.resolve().name]
    words += ["--output-dir", options.output_dir.resolve().name]
    if options.audio_tokenizer is not None:
        place = Path(options.audio_tokenizer)
        words += ["--audio-tokenizer", place.resolve().name if place.is_dir() else options.audio_tokenizer]
    record = build_parallel_prompts(
        options.source,
        options.output_dir,
        languages=["en", "fr"],
        audio_tokenizer=options.audio_tokenizer,
        speakers=SPEAKERS,
        summary=SUMMARY,
        limits=LIMITS,
        command=shlex.join(words),
        on_error="refuse",
        progress=options.progress,
    )
    rows = record.splits["en-fr"]["test"]["rows"]
    print(f'{options.output_dir}: {rows} pairs; datasets.load_dataset("{options.output_dir}", "en-fr")')


if __name__ == "__main__":
    main()
