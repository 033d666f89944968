"""Build swuggy from a local copy of ZeroSpeech 2021: words and non-words, as units.

    python dataset_scripts/swuggy.py ZEROSPEECH_FOLDER --output-dir swuggy --audio-tokenizer kyutai/mimi

ZEROSPEECH_FOLDER holds lexical/dev and lexical/test. Its licence, CC BY-NC-ND, allows this on your machine
and forbids passing the result on: there is no clsi/swuggy on the Hub, and no card beside this file.
"""

import sys

from hf_clsi.cli.main import main

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} ZEROSPEECH_FOLDER [options of hf-clsi build]")
    sys.exit(main(["build", "swuggy", "--source", *sys.argv[1:]]))
