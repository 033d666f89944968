"""Build clsi/spoken-topiccloze: a story's beginning, its ending, and that of another story.

    python dataset_scripts/spoken_topiccloze.py miniature --output-dir spoken-topiccloze
    python dataset_scripts/spoken_topiccloze.py paper --source cloze_test.csv --output-dir spoken-topiccloze

What follows the route goes to `hf-clsi build spoken-topiccloze`. The miniature's card is beside this file.
"""

import sys

from hf_clsi.cli.main import main

ROUTES = {
    # Built-in grammar and espeak-ng, in the units of the miniature's stories (tinystories_en_fr.py).
    "miniature": [
        "--source", "grammar", "--items", "1871", "--audio-tokenizer", "tinystories-en-fr",
    ],
    # The texts of StoryCloze 2016 are given out by its authors on request (--source FILE). How the paper made
    # the French side is not known; this is the route of its stories.
    "paper": [
        "--translator", "openai:gpt-4", "--engine", "kyutai", "--voices", "voices/voices.json",
        "--audio-tokenizer", "kyutai/mimi",
    ],
}  # fmt: skip

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ROUTES:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(ROUTES)}}} [options of hf-clsi build]")
    sys.exit(main(["build", "spoken-topiccloze", *ROUTES[sys.argv[1]], *sys.argv[2:]]))
