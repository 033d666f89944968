"""Build clsi/tinystories-en-fr: stories told in English and French, aligned sentence by sentence.

    python dataset_scripts/tinystories_en_fr.py miniature --output-dir tinystories-en-fr
    python dataset_scripts/tinystories_en_fr.py paper --output-dir tinystories-en-fr --executor slurm ...

What follows the route goes to `hf-clsi build tinystories-en-fr`. The miniature's card is beside this file.
"""

from routes import build_by_route

ROUTES = {
    # Built-in grammar, espeak-ng, embedded audio tokenizer: everything is here, nothing is downloaded.
    "miniature": ["--source", "grammar", "--items", "2000", "--validation-stories", "100"],
    # arXiv 2512.01865, section on data: TinyStories, translated by GPT-4 sentence by sentence, spoken by
    # Kyutai TTS 1.6B with the voices that verify as one speaker in both languages; Mimi's first codebook. The
    # prompt and the filters of the paper are not known; ours are in text/translation_openai.py and
    # text/corpora.py.
    "paper": [
        "--source", "roneneldan/TinyStories", "--text-licence", "cdla-sharing-1.0",
        "--translator", "openai:gpt-4", "--engine", "kyutai", "--voices", "voices/voices.json",
        "--audio-tokenizer", "kyutai/mimi",
    ],
}  # fmt: skip

if __name__ == "__main__":
    build_by_route("tinystories-en-fr", ROUTES)
