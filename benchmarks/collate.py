"""Turns made-up stories into a figure: units per second, on one core, of interleaving and packing in the
collator.

Beside it, the same job done the usual way: units as "<Un12>" strings, tokenized by a word-level tokenizer of
the tokenizers library, then grouped into blocks (the way of slamkit and of transformers' run_clm). The
strings are made beforehand and the tokenizer is called without transformers around it, both in favor of the
usual way, which also keeps documents apart neither by labels nor by positions. And a bare copy of the batch's
bytes, as the floor.

    python benchmarks/collate.py
    python benchmarks/collate.py --sentences 5 --sentence-units 7    # the miniature's stories
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import random
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_clsi.batches.collator import InterleavingDataCollator

LANGUAGES = ("en", "fr")


def made_up_stories(
    number: int, sentences: int, sentence_units: int, num_units: int, seed: int
) -> list[dict]:
    """Rows with `sentences` and `sentence_units` on average, each from half to one and a half times that."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(number):
        count = int(rng.integers(max(1, sentences // 2), sentences * 3 // 2 + 1))
        row = {"story_id": f"story-{index}"}
        for language in LANGUAGES:
            lengths = rng.integers(max(1, sentence_units // 2), sentence_units * 3 // 2 + 1, size=count)
            row[f"tokens_{language}"] = [rng.integers(0, num_units, n).astype(np.uint16) for n in lengths]
        rows.append(row)
    return rows


def usual_way(num_units: int, block: int, seed: int) -> Callable[[list[list[list[str]]]], tuple[dict, int]]:
    """A function of rows as strings, `[row][language][sentence]` -> (batch of blocks, its units)."""
    generator = random.Random(seed)
    vocabulary = {f"<Un{unit}>": unit for unit in range(num_units)} | {"<s>": num_units}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(">", behavior="merged_with_previous")

    def collate(rows: list[list[list[str]]]) -> tuple[dict, int]:
        texts = ["<s>" + "".join(generator.choice(sides) for sides in zip(*row, strict=True)) for row in rows]
        tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        stream = list(chain.from_iterable(tokens))
        kept = len(stream) // block * block
        blocks = [stream[start : start + block] for start in range(0, kept, block)]
        return {"input_ids": torch.tensor(blocks), "labels": torch.tensor(blocks)}, len(stream) - len(rows)

    return collate


def best_rate(function: Callable[[Any], int], batches: list, repeats: int) -> float:
    """Units per second of processor time over all batches, in the best of `repeats` passes.

    Everything runs in one thread, so this is the rate of one core even when others use the machine too.
    """
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        units = sum(function(batch) for batch in batches)
        rates.append(units / (time.process_time() - start))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=int, default=2_048)
    parser.add_argument("--batch", type=int, default=256, help="stories in a batch")
    parser.add_argument("--sentences", type=int, default=15, help="sentences in a story, on average")
    parser.add_argument(
        "--sentence-units", type=int, default=45, help="units in a sentence, on average (3.6 s)"
    )
    parser.add_argument("--num-units", type=int, default=2_048)
    parser.add_argument("--max-length", type=int, default=2_048)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows = made_up_stories(args.stories, args.sentences, args.sentence_units, args.num_units, seed=0)
    batches = [rows[start : start + args.batch] for start in range(0, len(rows), args.batch)]
    as_lists = [
        [
            {key: value if key == "story_id" else [s.tolist() for s in value] for key, value in row.items()}
            for row in b
        ]
        for b in batches
    ]
    as_strings = [
        [[["".join(f"<Un{u}>" for u in s) for s in row[f"tokens_{code}"]] for code in LANGUAGES] for row in b]
        for b in batches
    ]

    def collator(**settings) -> Callable[[list], int]:
        collate = InterleavingDataCollator(
            LANGUAGES, num_units=args.num_units, max_length=args.max_length, return_counts=True, **settings
        )
        return lambda batch: int(collate(batch)["token_counts"][:, 0].sum())

    plain = InterleavingDataCollator(LANGUAGES, num_units=args.num_units, max_length=args.max_length)
    collated = [plain(batch) for batch in batches]
    is_pad = torch.cat([batch["input_ids"].flatten() == plain.pad_token_id for batch in collated])
    best_fit = collator()
    units_of = [best_fit(batch) for batch in batches]

    def copy(index: int) -> int:
        for tensor in collated[index].values():
            tensor.clone()
        return units_of[index]

    strings = usual_way(args.num_units, args.max_length, seed=0)
    ours = best_rate(best_fit, batches, args.repeats)
    usual = best_rate(lambda batch: strings(batch)[1], as_strings, args.repeats)
    floor = best_rate(copy, list(range(len(batches))), args.repeats)
    rates = {
        "collator, best fit (arrays)": ours,
        "collator, best fit (lists)": best_rate(best_fit, as_lists, args.repeats),
        "collator, concatenate (arrays)": best_rate(collator(packing="concatenate"), batches, args.repeats),
        '"<Un12>" strings, grouped': usual,
        "copy of the batch's bytes": floor,
    }
    print(
        f"{args.stories} stories of about {args.sentences} x {args.sentence_units} units, "
        f"{args.batch} a batch"
    )
    for name, rate in rates.items():
        print(f"  {name:<32} {rate / 1e6:8.2f} M units/s   {rate / usual:7.1f} x the strings")
    print(
        f"  padding of best fit: {is_pad.float().mean():.2%}; "
        f"the collator takes {floor / ours:.0f} x the copy's time"
    )


if __name__ == "__main__":
    main()
