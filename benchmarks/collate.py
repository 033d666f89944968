"""Turns made-up stories into figures: units a second, on one core, of interleaving and packing them.

Ours: `InterleavingDataCollator` on random stories of a memory-mapped table, on Arrow tables as `datasets`
gives them, and on rows of arrays and of lists. It counts tokens, units and switches while it is at it.

Beside it the same job done the usual way: units as "<Un12>" strings, a language drawn for every sentence,
tokenized by a word-level tokenizer of the tokenizers library, concatenated and cut into blocks (`group_texts`
of transformers' run_clm). It is measured with the strings made beforehand and from the units, with the bare
library and through transformers. All of these keep documents apart neither by labels nor by positions, which
is in their favor. With `--peer`, slamkit's own tokenizer and data loading are imported from a checkout and
measured. And a bare copy of the batch's bytes, as the floor.

Everything runs in one thread; what is measured is processor time, all ways in turns, round after round. The
made-up units are random, which costs a word-level tokenizer and us the same as any others.

    python benchmarks/collate.py
    python benchmarks/collate.py --sentences 5 --sentence-units 7           # the miniature's stories
    python benchmarks/collate.py --peer ../slamkit                          # needs omegaconf and joblib
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerFast

from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.batches.stories import Documents, StoryTable
from hf_clsi.rows.shards import UnitColumn

LANGUAGES = ("en", "fr")
#: Units of one optimizer step in arXiv 2512.01865.
PAPER_STEP = 614_400
BOS = "<s>"
#: Of the logarithm of the lengths of stories, where they are not drawn evenly.
SIGMA = 0.45


@dataclass
class Way:
    """One way to do the job: `run` makes one batch of what `batches` holds and returns its units."""

    name: str
    run: Callable[[Any], int]
    batches: list[Any]


def made_up_corpus(
    number: int, sentences: int, sentence_units: int, num_units: int, spread: str, seed: int
) -> pa.Table:
    """Stories of `sentences` sentences and sentences of `sentence_units` units on average.

    Sentences have from half to one and a half times that, and so have stories with spread "even"; with
    "lognormal" their logarithm has a normal distribution.
    """
    rng = np.random.default_rng(seed)
    if spread == "even":
        counts = rng.integers(max(1, sentences // 2), sentences * 3 // 2 + 1, size=number)
    else:
        draws = rng.lognormal(np.log(sentences) - SIGMA**2 / 2, SIGMA, size=number)
        counts = np.maximum(1, draws.round()).astype(np.int64)
    rows = np.concatenate([[0], np.cumsum(counts)])
    columns = {"story_id": pa.array([f"story-{index}" for index in range(number)])}
    for code in LANGUAGES:
        lengths = rng.integers(max(1, sentence_units // 2), sentence_units * 3 // 2 + 1, size=int(rows[-1]))
        borders = np.concatenate([[0], np.cumsum(lengths)])
        units = pa.array(rng.integers(0, num_units, int(borders[-1])).astype(np.uint16))
        inner = pa.ListArray.from_arrays(pa.array(borders, pa.int32()), units)
        columns[f"units_{code}"] = pa.ListArray.from_arrays(pa.array(rows, pa.int32()), inner)
    return pa.table(columns)


def mapped(table: StoryTable, path: Path) -> StoryTable:
    """The table as hf_clsi.training.stories maps a corpus: all languages in one memory-mapped array."""
    np.save(path, np.concatenate([table.columns[code].units for code in LANGUAGES]))
    units, columns, base = np.load(path, mmap_mode="r"), {}, 0
    for code in LANGUAGES:
        old = table.columns[code]
        columns[code] = UnitColumn(units, old.sentence_offsets + base, old.row_offsets)
        base += old.units.size
    return StoryTable(table.ids, columns)


def word_level_tokenizer(num_units: int) -> Tokenizer:
    """Units as words, BOS before and after every text; the tokenizer that slamkit builds, too."""
    vocabulary = {f"<Un{unit}>": unit for unit in range(num_units)} | {BOS: num_units}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(">", behavior="merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $0 {BOS}", special_tokens=[(BOS, num_units)]
    )
    return tokenizer


def group(tokens: list[list[int]], block: int) -> dict[str, torch.Tensor]:
    """All texts one after the other, cut into blocks; the rest is dropped (`group_texts` of run_clm)."""
    stream = list(chain.from_iterable(tokens))
    kept = len(stream) // block * block
    blocks = torch.tensor([stream[start : start + block] for start in range(0, kept, block)])
    return {"input_ids": blocks, "labels": blocks.clone()}


def usual_ways(strings: list[Any], units: list[Any], num_units: int, block: int) -> list[Way]:
    """The usual way, from batches `[story][language][sentence]` of strings and of lists of units.

    The strings of a story's sentences are drawn and joined in every pass, since every epoch draws anew.
    """
    tokenizer = word_level_tokenizer(num_units)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    words = [f"<Un{unit}>" for unit in range(num_units)]
    flatten = DataCollatorWithFlattening(return_tensors="pt")
    generator = random.Random(0)

    def interleave(stories: Any) -> list[list[Any]]:
        return [[generator.choice(sides) for sides in zip(*story, strict=True)] for story in stories]

    def tokenize(texts: list[str]) -> int:
        tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        group(tokens, block)
        return sum(map(len, tokens)) - 2 * len(texts)

    def from_strings(stories: Any) -> int:
        return tokenize(["".join(story) for story in interleave(stories)])

    def from_units(stories: Any) -> int:
        return tokenize(
            ["".join(map(words.__getitem__, chain.from_iterable(story))) for story in interleave(stories)]
        )

    def through_transformers(stories: Any) -> int:
        tokens = fast(["".join(story) for story in interleave(stories)])["input_ids"]
        group(tokens, block)
        return sum(map(len, tokens)) - 2 * len(stories)

    def tokenized_before(stories: Any) -> int:
        batch = flatten([{"input_ids": story} for story in stories])
        return batch["input_ids"].numel() - 2 * len(stories)

    generator_before = random.Random(0)
    ready = [
        [
            [
                num_units,
                *chain.from_iterable(generator_before.choice(s) for s in zip(*story, strict=True)),
                num_units,
            ]
            for story in stories
        ]
        for stories in units
    ]
    return [
        Way("strings, bare tokenizers", from_strings, strings),
        Way("units -> strings, bare tokenizers", from_units, units),
        Way("strings, through transformers", through_transformers, strings),
        Way("tokenized once (one draw for ever), flattened", tokenized_before, ready),
    ]


def peer_ways(
    path: Path, strings: list[Any], units: list[Any], num_units: int, block: int, folder: Path
) -> list[Way]:
    """slamkit's own code on the same batches, imported from a checkout.

    It turns units into strings once (`prepare_tokens`), tokenizes them row by row in `datasets.map`, cuts
    every text by itself into pieces of the context's length (`chunk_texts`), and flattens or pads the pieces
    of a batch. It interleaves speech with text, not languages by sentence, so the sentences are drawn here.
    """
    sys.path.insert(0, str(path))
    # By name: they are the peer's, no dependencies of ours.
    OmegaConf = import_module("omegaconf").OmegaConf
    peer_dataset = import_module("slamkit.data.hf_dataset")
    chunk_texts, parse_single_dataset = peer_dataset.chunk_texts, peer_dataset.parse_single_dataset
    UnitTokeniser = import_module("slamkit.tokeniser.unit_tokeniser").UnitTokeniser

    tokenizer = UnitTokeniser(None, num_units=num_units, load_fe=False)
    flatten = DataCollatorWithFlattening(return_tensors="pt")
    config = OmegaConf.create({"data": {"num_proc": None}, "model": {"context_len": block}})
    generator = random.Random(0)
    calls = iter(range(10**9))

    def interleave(stories: Any) -> list[list[Any]]:
        return [[generator.choice(sides) for sides in zip(*story, strict=True)] for story in stories]

    def tokenize(texts: list[str]) -> int:
        rows = [tokenizer.prepare_sample({"audio_repr": text}) for text in texts]
        keys = ("input_ids", "attention_mask")
        chunks = chunk_texts({key: [row[key] for row in rows] for key in keys}, chunk_size=block)
        batch = flatten([{"input_ids": chunk} for chunk in chunks["input_ids"]])
        return batch["input_ids"].numel() - 2 * len(texts)

    def from_strings(stories: Any) -> int:
        return tokenize(["".join(story) for story in interleave(stories)])

    def from_units(stories: Any) -> int:
        rows = [{"units": list(chain.from_iterable(story))} for story in interleave(stories)]
        return tokenize(tokenizer.stringify_representation(rows))

    def whole_loading(stories: Any) -> int:
        # Another file each time, or datasets would find the last one's result in its cache.
        file = folder / f"{next(calls)}.jsonl"
        texts = ["".join(story) for story in interleave(stories)]
        file.write_text("".join(json.dumps({"audio_repr": text}) + "\n" for text in texts))
        rows = parse_single_dataset(config, tokenizer, str(file))["train"]
        batch = flatten([{"input_ids": row["input_ids"]} for row in rows])
        return batch["input_ids"].numel() - 2 * len(texts)

    return [
        Way("slamkit, strings, its tokenizer and chunks", from_strings, strings),
        Way("slamkit, units -> strings, the same", from_units, units),
        Way("slamkit, JSON lines of strings, its loading", whole_loading, strings),
    ]


def our_ways(
    dataset: datasets.Dataset, table: StoryTable, batch: int, collators: dict[str, Any]
) -> list[Way]:
    """The collator on every kind of batch that it takes."""
    starts = range(0, len(dataset) - batch + 1, batch)
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = [Documents.whole(order[start : start + batch]) for start in starts]
    in_arrow = dataset.with_format("arrow")

    def rows_of(start: int, convert: Callable[[list[int]], Any]) -> list[dict[str, Any]]:
        rows = dataset[start : start + batch]
        return [
            {key: value if key == "story_id" else [convert(sentence) for sentence in value] for key, value in
             zip(rows, values, strict=True)}
            for values in zip(*rows.values(), strict=True)
        ]  # fmt: skip

    def counted(collated: dict[str, torch.Tensor]) -> int:
        return int(collated["token_counts"][:, 0].sum())

    best, with_languages = collators["best_fit"], collators["languages"]
    joined = collators["concatenate"]
    few = list(starts)[:4]
    arrays = [rows_of(start, lambda units: np.array(units, dtype=np.uint16)) for start in few]
    lists = [rows_of(start, list) for start in few]
    return [
        Way("table, random stories", lambda d: counted(best.collate(table, d)), shuffled),
        Way("  with languages", lambda d: counted(with_languages.collate(table, d)), shuffled),
        Way("  concatenated", lambda d: counted(joined.collate(table, d)), shuffled),
        Way("Arrow from datasets", lambda s: counted(best(in_arrow[s : s + batch])), list(starts)),
        Way("rows of arrays", lambda rows: counted(best(rows)), arrays),
        Way("rows of lists", lambda rows: counted(best(rows)), lists),
    ]


def copies(table: StoryTable, documents: list[Documents], collator: Any) -> list[Way]:
    """Copies of the bytes of collated batches, into fresh memory and into memory that is there."""
    batches = [collator.collate(table, own) for own in documents]
    units = [int(batch["token_counts"][:, 0].sum()) for batch in batches]
    tensors = [[batch[name] for name in ("input_ids", "labels", "position_ids")] for batch in batches]
    room = [[torch.empty_like(t) for t in own] for own in tensors]

    def fresh(index: int) -> int:
        for tensor in tensors[index]:
            tensor.clone()
        return units[index]

    def over(index: int) -> int:
        for tensor, target in zip(tensors[index], room[index], strict=True):
            target.copy_(tensor)
        return units[index]

    return [
        Way("copy of the batch's bytes", fresh, list(range(len(batches)))),
        Way("copy into memory that is there", over, list(range(len(batches)))),
    ]


def measure(ways: list[Way], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Units per second of processor time of every way in every round.

    In a round each way runs for about `seconds`, at least one batch, after one that is not counted.
    """
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            way.run(way.batches[0])
            units, place = 0, 0
            start = time.process_time()
            while not units or time.process_time() - start < seconds:
                units += way.run(way.batches[place % len(way.batches)])
                place += 1
            rates[way.name].append(units / (time.process_time() - start))
    return rates


def report(rates: dict[str, list[float]], strings: str, units: str, floor: str) -> None:
    """Prints medians with their range, and the medians of the ratios inside rounds.

    Args:
        rates: by name, as `measure` gives them.
        strings, units: the names of the usual way with strings made beforehand, and from units.
        floor: the name of the bare copy.
    """

    def ratios(above: list[float], below: list[float]) -> list[float]:
        return [a / b for a, b in zip(above, below, strict=True)]

    width = max(map(len, rates))
    print(f"  {'':<{width}}  M units/s (range)        x strings (range)     x units  copies' time")
    for name, own in rates.items():
        faster = ratios(own, rates[strings])
        print(
            f"  {name:<{width}}  {statistics.median(own) / 1e6:7.2f} "
            f"{f'({min(own) / 1e6:.2f}-{max(own) / 1e6:.2f})':<17}"
            f"{statistics.median(faster):8.1f} {f'({min(faster):.1f}-{max(faster):.1f})':<13}"
            f"{statistics.median(ratios(own, rates[units])):8.1f} "
            f"{statistics.median(ratios(rates[floor], own)):13.1f}"
        )


def report_padding(args: argparse.Namespace, collator: InterleavingDataCollator) -> None:
    """Prints the padding of best-fit packing by spread and size of batch, beside the least there can be."""
    print(
        f"padding of best-fit packing, rows of {args.max_length} (in brackets: if only the last row had any)"
    )
    for spread in ("even", "lognormal"):
        line = []
        for batch in (64, 256, step_stories(args)):
            cells = least = tokens = 0
            for seed in range(args.padding_batches):
                corpus = made_up_corpus(
                    batch, args.sentences, args.sentence_units, args.num_units, spread, seed
                )
                collated = collator.collate(StoryTable.from_arrow(corpus, LANGUAGES))
                ids = collated["input_ids"]
                own = int((ids != collator.pad_token_id).sum())
                tokens += own
                cells += ids.numel()
                least += -(-own // ids.shape[1]) * ids.shape[1]
            line.append(f"{batch} stories {1 - tokens / cells:.2%} ({1 - tokens / least:.2%})")
        print(f"  {spread:<10} {'   '.join(line)}")


def step_stories(args: argparse.Namespace) -> int:
    """Stories that make a step of the paper."""
    return max(1, round(PAPER_STEP / (args.sentences * args.sentence_units)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=int, default=8_192, help="in the table")
    parser.add_argument("--sentences", type=int, default=15, help="sentences in a story, on average")
    parser.add_argument(
        "--sentence-units", type=int, default=45, help="units in a sentence, on average (3.6 s)"
    )
    parser.add_argument("--spread", choices=("even", "lognormal"), default="even", help="of story lengths")
    parser.add_argument("--num-units", type=int, default=2_048)
    parser.add_argument("--max-length", type=int, default=2_048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way in a round")
    parser.add_argument(
        "--padding-batches", type=int, default=20, help="batches that padding is averaged over"
    )
    parser.add_argument("--peer", type=Path, help="a checkout of slamkit, measured with its own code")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    datasets.disable_progress_bars()

    collators = {
        name: InterleavingDataCollator(
            LANGUAGES, num_units=args.num_units, max_length=args.max_length, return_counts=True, **settings
        )
        for name, settings in {
            "best_fit": {},
            "concatenate": {"packing": "concatenate"},
            "languages": {"return_languages": True},
        }.items()
    }
    report_padding(args, collators["best_fit"])
    sizes = (256, step_stories(args))
    number = max(args.stories, 2 * max(sizes))
    corpus = made_up_corpus(number, args.sentences, args.sentence_units, args.num_units, args.spread, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        datasets.Dataset(corpus).save_to_disk(folder / "stories")
        dataset = datasets.load_from_disk(folder / "stories")  # memory-mapped
        table = mapped(StoryTable.from_arrow(dataset.data.table, LANGUAGES), folder / "units.npy")
        for batch in sizes:
            ours = our_ways(dataset, table, batch, collators)
            shown = dataset[: 2 * batch]
            stories = [
                list(zip(*(shown[f"units_{code}"][start : start + batch] for code in LANGUAGES), strict=True))
                for start in (0, batch)
            ]
            strings = [
                [[["".join(f"<Un{u}>" for u in s) for s in side] for side in story] for story in own]
                for own in stories
            ]
            usual = usual_ways(strings, stories, args.num_units, args.max_length)
            peer = []
            if args.peer is not None:
                files = folder / f"files-{batch}"
                files.mkdir()
                peer = peer_ways(args.peer, strings, stories, args.num_units, args.max_length, files)
            floor = copies(table, ours[0].batches[:4], collators["best_fit"])
            print(
                f"batches of {batch} stories of {args.sentences} x {args.sentence_units} units "
                f"({args.spread}), {args.rounds} rounds"
            )
            rates = measure([*ours, *usual, *peer, *floor], args.rounds, args.seconds)
            report(rates, usual[0].name, usual[1].name, floor[0].name)


if __name__ == "__main__":
    main()
