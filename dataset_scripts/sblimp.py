"""Build sblimp from a local copy of ZeroSpeech 2021: right and wrong sentences, as units.

    python dataset_scripts/sblimp.py ZEROSPEECH_FOLDER --output-dir sblimp --audio-tokenizer kyutai/mimi

ZEROSPEECH_FOLDER holds syntactic/dev and syntactic/test. Its licence, CC BY-NC-ND, allows this on your
machine and forbids passing the result on: there is no clsi/sblimp on the Hub, and no card beside this file.
"""

import sys

from hf_clsi.cli.main import main

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} ZEROSPEECH_FOLDER [options of hf-clsi build]")
    sys.exit(main(["build", "sblimp", "--source", *sys.argv[1:]]))
