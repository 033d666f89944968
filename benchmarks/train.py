"""Units per second of a training step: packed and isolated, beside padded batches of the same stories.

The padded way is what a plain Trainer does: a tokenizer with a pad token, DataCollatorForLanguageModeling,
an attention mask, a story a row, as wide as the longest story of the batch. Same model, same stories, same
number of stories a step; both ways give the same loss, or the run fails. A step is forward, backward,
clipping and AdamW. The ways take turns, and which goes first changes every time, so that a noisy machine
disturbs all alike. `ratio` is padded time / packed time, the median over the rounds with the order statistics
that hold the true median with 95% confidence; `of CPU time` the same of processor time, for busy machines.

Stories have 15 sentences on average, lognormal with a sigma of 0.45, and sentences 45 units, even from 22 to
67. Stories that do not fit into a row are left out (0.4% of them).

Then the share of a step's time that the loop waits for its next batch, rows coming through a DataLoader as
the plain Trainer makes it, without and with a worker.

    python benchmarks/train.py                               # CPU: tiny and mid, then the waiting
    python benchmarks/train.py --size tiny --repeats 11 --stories 32

With `--matrix` settings are tried instead: attention, compilation, rows a forward, activation checkpointing.
Every one of them, also one that fails, becomes a line of a JSONL file as soon as it is done, and a table at
the end; one that the file has already is not done again, so that the command can be repeated after a limit of
time. First every attention with and without compilation, then the best ones with other numbers of rows and
with checkpointing. MFU is tokens a second times FLOPs a token (6 N plus attention, training/cost.py) over the
device's peak: `mfu` counts attention inside documents, which is what must be computed, `mfu_row` the
attention of whole rows as PaLM does. No file is read: stories are plain arrays; neither datasets nor pyarrow
is needed.

    python benchmarks/train.py --matrix --device cuda --size 360m --out train-360m.jsonl
    python benchmarks/train.py --matrix --device cuda --size 1b --out train-1b.jsonl --minutes 9
    python benchmarks/train.py --matrix --device cpu --size tiny --max-length 256 --rows 2 4   # a rehearsal
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked

import numpy as np
import torch
import transformers
from generate import median_interval, synchronize
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.batches.stories import Documents, StoryTable
from hf_clsi.configuration_clsi import SIZES as CONFIGS
from hf_clsi.rows.shards import UnitColumn
from hf_clsi.training import cost
from hf_clsi.training.recipes import ModelSettings
from hf_clsi.training.speed import ATTENTIONS, SpeedChoice, apply_speed, choose_speed

NUM_UNITS = 2_048
SIGMA = 0.45  # as in collate.py
MID = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2_048,
    "tie_word_embeddings": True,
}
TINY = {**CONFIGS["tiny"]["text_config"], "max_position_embeddings": 2_048}
SIZES = {"tiny": TINY, "mid": MID, **{name: CONFIGS[name]["text_config"] for name in ("360m", "1b")}}

Batch = dict[str, Any]


# --- data and model


def made_up_stories(number: int, max_length: int, seed: int) -> StoryTable:
    """Stories in one language that fit into a row with BOS and EOS, as a table of flat arrays."""
    rng = np.random.default_rng(seed)
    sentences: list[np.ndarray] = []
    counts: list[int] = []
    while len(counts) < number:
        count = max(1, round(rng.lognormal(np.log(15) - SIGMA**2 / 2, SIGMA)))
        lengths = rng.integers(22, 68, size=count)
        if lengths.sum() + 2 > max_length:
            if max_length < 1_024:  # a rehearsal: no story of the usual length fits
                lengths = rng.integers(2, max_length // 4, size=3)
            else:
                continue
        counts.append(len(lengths))
        sentences.append(lengths)
    borders = np.concatenate([[0], np.cumsum(np.concatenate(sentences))])
    units = rng.integers(0, NUM_UNITS, int(borders[-1])).astype(np.uint16)
    rows = np.concatenate([[0], np.cumsum(counts)])
    return StoryTable([f"story-{i}" for i in range(number)], {"en": UnitColumn(units, borders, rows)})


def lengths_of(table: StoryTable) -> np.ndarray:
    """Units of every story."""
    column = table.columns["en"]
    return np.diff(column.sentence_offsets[column.row_offsets])


def units_of(table: StoryTable, story: int) -> np.ndarray:
    """All units of a story."""
    column = table.columns["en"]
    start, stop = column.sentence_offsets[column.row_offsets[story : story + 2]]
    return column.units[start:stop]


def packing_collator(max_length: int, **settings: Any) -> InterleavingDataCollator:
    return InterleavingDataCollator(
        ["en"], num_units=NUM_UNITS, max_length=max_length, pad_to_max_length=False, **settings
    )


def padding_collator() -> DataCollatorForLanguageModeling:
    """transformers' own, with a tokenizer that has a pad token."""
    specials = ("<s>", "</s>", "<pad>")
    vocabulary = {f"<Un{unit}>": unit for unit in range(NUM_UNITS)}
    vocabulary |= {name: NUM_UNITS + index for index, name in enumerate(specials)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def padded_batch(collate: DataCollatorForLanguageModeling, table: StoryTable, stories: np.ndarray) -> Batch:
    ids = [[NUM_UNITS, *units_of(table, story).tolist(), NUM_UNITS + 1] for story in stories]
    return dict(collate([{"input_ids": row} for row in ids]))


def build_model(size: str, device: torch.device, max_length: int, seed: int = 0) -> ClsiForCausalLM:
    """Random weights in float32, in train mode."""
    torch.manual_seed(seed)
    text_config = copy.deepcopy(SIZES[size])
    text_config["max_position_embeddings"] = max(max_length, text_config["max_position_embeddings"])
    with torch.device(device):
        return ClsiForCausalLM(ClsiConfig(num_units=NUM_UNITS, text_config=text_config)).train()


class Steps:
    """Optimizer steps of a model."""

    def __init__(self, model: ClsiForCausalLM, fused: bool):
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-5, betas=(0.9, 0.98), weight_decay=0.1, fused=fused
        )

    def __call__(self, micro_batches: list[Batch], choice: SpeedChoice) -> torch.Tensor:
        """One step; the mean loss of its tokens, still on the device."""
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            batch = {
                name: value.to(self.model.device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in batch.items()
            }
            with choice.autocast():
                loss = self.model(**batch, num_items_in_batch=targets).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


# --- packed beside padded


def compare(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one size: seconds a step of every way, in turns, each round on stories of its own.

    Raises:
        RuntimeError: the ways do not give the same loss.
    """
    device = torch.device(args.device)
    table = made_up_stories(args.stories * (args.repeats + 1), args.max_length, args.seed)
    lengths = lengths_of(table)
    model = build_model(size, device, args.max_length)
    settings = ModelSettings(SIZES[size], dtype="float32")
    default = choose_speed(settings, device=device, max_length=args.max_length)
    choices = {"packed": default}
    for name in args.attention or ["sdpa"]:
        if name != default.attention:
            choices[f"packed, {name}"] = choose_speed(settings, device=device, attention=name)
    steps = Steps(model, default.fused)
    pad = padding_collator()
    seconds: dict[str, list[float]] = {name: [] for name in [*choices, "padded"]}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in seconds}
    cells: dict[str, list[int]] = {name: [] for name in seconds}  # tokens and pads of each step
    units = []
    for index in range(args.repeats + 1):  # the first is the warm-up
        stories = np.arange(index * args.stories, (index + 1) * args.stories)
        units.append(int(lengths[stories].sum()))
        losses = {}
        names = list(seconds)
        first = index % len(names)
        for name in names[first:] + names[:first]:
            choice = choices.get(name, default)
            if name == "padded":
                batch = padded_batch(pad, table, stories)
            else:
                collator = packing_collator(args.max_length, **choice.collator_arguments())
                batch = collator.collate(table, Documents.whole(stories))
            with apply_speed(model, choice, check=False):
                if index == 0:  # weights must be those of the other ways
                    with torch.no_grad(), choice.autocast():
                        losses[name] = float(model(**to(batch, device)).loss)
                    continue
                synchronize()
                start, cpu_start = time.perf_counter(), time.process_time()
                steps([batch], choice)
                synchronize()
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
                cells[name].append(batch["input_ids"].numel())
        if index == 0:
            if max(losses.values()) - min(losses.values()) > 1e-3:
                raise RuntimeError(f"the ways give different losses: {losses}.")
            steps([padded_batch(pad, table, stories)], default)  # the optimizer's state is made
    done = units[1:]
    result: dict[str, Any] = {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": default.attention,
        "stories": args.stories,
        "rounds": args.repeats,
        "story_units": {
            "mean": float(lengths.mean()),
            "sd": float(lengths.std()),
            "longest": int(lengths.max()),
        },
        "ways": {},
    }
    for name in seconds:
        ratio, low, high = ratio_of(seconds["padded"], seconds[name])
        cpu_ratio, cpu_low, cpu_high = ratio_of(cpu_seconds["padded"], cpu_seconds[name])
        result["ways"][name] = {
            "units_per_s": statistics.median(u / s for u, s in zip(done, seconds[name], strict=True)),
            "padding": 1 - sum(u + 2 * args.stories for u in done) / sum(cells[name]),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "cpu_ratio": cpu_ratio,
            "cpu_ratio_low": cpu_low,
            "cpu_ratio_high": cpu_high,
        }
    return result


def ratio_of(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Median of the rounds' ratios, and the ends of its interval."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), *median_interval(ratios)


def to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def waiting(size: str, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Share of the loop's time spent on waiting for the next batch; start and first batch are left out."""
    device = torch.device(args.device)
    count = args.wait_steps + 2
    table = made_up_stories(args.stories * count, args.max_length, args.seed + 1)
    rows = [
        {"story_id": table.ids[story], "units_en": table.columns["en"].sentences(story)}
        for story in range(len(table))
    ]
    settings = ModelSettings(SIZES[size], dtype="float32")
    choice = choose_speed(settings, device=device, max_length=args.max_length)
    collator = packing_collator(args.max_length, return_counts=True, **choice.collator_arguments())
    loader = DataLoader(
        rows,
        batch_size=args.stories,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if workers else None,
    )
    model = build_model(size, device, args.max_length)
    steps = Steps(model, choice.fused)
    waited, worked = [], []
    with apply_speed(model, choice, check=False):
        batches = iter(loader)
        for _ in range(count - 1):
            start = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            for name in ("token_counts", "switch_counts"):
                batch.pop(name)
            steps([batch], choice)
            synchronize()
            waited.append(got - start)
            worked.append(time.perf_counter() - got)
    del batches
    waited, worked = waited[1:], worked[1:]
    shares = [w / (w + s) for w, s in zip(waited, worked, strict=True)]
    return {
        "size": size,
        "workers": workers,
        "steps": len(shares),
        "share": sum(waited) / (sum(waited) + sum(worked)),
        "most": max(shares),
        "wait_ms": 1e3 * statistics.mean(waited),
        "step_ms": 1e3 * statistics.mean(worked),
    }


# --- the settings, on a GPU


def matrix(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Tries the settings one by one, and writes each down as soon as it is done."""
    until = time.monotonic() + 60 * args.minutes
    out = Path(args.out)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = [line for line in done if line["size"] == size and line["max_length"] == args.max_length]
    device = torch.device(args.device)
    model = build_model(size, device, args.max_length)
    steps = None
    for setting in settings_to_try(done, args):
        if key_of(setting) in map(key_of, done):
            continue
        if time.monotonic() > until:
            print(f"stopped after {args.minutes} minutes; the same command goes on from here", flush=True)
            break
        line = {**environment(device), "size": size, "max_length": args.max_length, **setting}
        try:
            choice = choose_speed(
                ModelSettings(SIZES[size], dtype=args.dtype),
                device=device,
                isolate=setting["isolate"],
                attention=setting["attention"],
                compile=setting["compile"],
                dtype=args.dtype,
            )
            steps = steps or Steps(model, choice.fused)
            line |= try_setting(size, model, steps, choice, setting, args)
        except (ValueError, RuntimeError, torch.OutOfMemoryError) as error:
            line["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
        for parameter in model.parameters():
            parameter.grad = None
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done.append(line)
        print(describe_line(line), flush=True)
    return done


def key_of(line: dict[str, Any]) -> tuple:
    return tuple(line[name] for name in ("attention", "isolate", "compile", "rows", "checkpointing"))


def settings_to_try(done: list[dict[str, Any]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every attention and compilation with the first number of rows, then the two best with all the rest.

    `done` grows while this runs.
    """
    names = args.attention or [name for name in ATTENTIONS if name != "eager"]
    ways = [(name, True) for name in names] + [("sdpa", False)]
    compiles = {"yes": [True], "no": [False], "both": [False, True]}[args.compile]
    for (attention, isolate), compiled in product(ways, compiles):
        yield {
            "attention": attention,
            "isolate": isolate,
            "compile": compiled,
            "rows": args.rows[0],
            "checkpointing": False,
        }
    best = sorted(
        (
            line
            for line in done
            if "tokens_per_s" in line
            and line["isolate"]
            and line["rows"] == args.rows[0]
            and not line["checkpointing"]
        ),
        key=lambda line: -line["tokens_per_s"],
    )[:2]
    for line, checkpointing, rows in product(best, [False, True], args.rows):
        yield {
            name: line[name] for name in ("attention", "isolate", "compile")
        } | {"rows": rows, "checkpointing": checkpointing}  # fmt: skip


def try_setting(
    size: str,
    model: ClsiForCausalLM,
    steps: Steps,
    choice: SpeedChoice,
    setting: dict[str, Any],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Times some steps of `args.micro_batches` forwards of so many rows."""
    device, rows = model.device, setting["rows"]
    needed = rows * args.micro_batches
    table = made_up_stories(64 + needed * 8, args.max_length, args.seed)
    collator = packing_collator(args.max_length, return_counts=True, **choice.collator_arguments())
    packed = collator.arrange(table)
    if packed.num_rows < needed:
        raise RuntimeError(f"{len(table)} stories fill {packed.num_rows} rows, {needed} are needed.")
    micro_batches, units, tokens = [], 0, 0
    for first in range(0, needed, rows):
        batch = packed.batch(first, first + rows)
        units += int(batch.pop("token_counts")[:, 1].sum())
        batch.pop("switch_counts")
        tokens += int((batch["input_ids"] != collator.pad_token_id).sum())
        if not choice.isolate:
            # Pads come last and have no labels; positions would restart there, and a mask would be built.
            batch.pop("position_ids")
        micro_batches.append(batch)
    if setting["checkpointing"]:
        checkpoint_activations(model, True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    try:
        with apply_speed(model, choice):
            started = time.perf_counter()
            for index in range(args.warm_up + args.repeats):
                synchronize()
                start = time.perf_counter()
                steps(micro_batches, choice)
                synchronize()
                if index < args.warm_up:
                    warm_up = time.perf_counter() - started
                else:
                    seconds.append(time.perf_counter() - start)
    finally:
        if setting["checkpointing"]:
            checkpoint_activations(model, False)
    shape = cost.model_shape(dict(SIZES[size]), NUM_UNITS)
    context = cost.mean_context(args.max_length, lengths_of(table) + 2 if choice.isolate else None)
    low, high = median_interval(seconds)
    rate = tokens / statistics.median(seconds)
    flops = {
        "mfu": cost.training_flops_per_token(shape, context),
        "mfu_row": cost.training_flops_per_token(shape, args.max_length),
    }
    peak = cost.gpu(args.gpu).peak_flops if device.type == "cuda" else None
    return {
        "dtype": choice.dtype,
        "micro_batches": args.micro_batches,
        "steps": len(seconds),
        "step_s": statistics.median(seconds),
        "step_s_low": low,
        "step_s_high": high,
        "warm_up_s": warm_up,
        "tokens_per_s": rate,
        "units_per_s": units / statistics.median(seconds),
        "flops_per_token": flops["mfu"],
        **{name: rate * value / peak if peak else None for name, value in flops.items()},
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def checkpoint_activations(model: ClsiForCausalLM, enable: bool) -> None:
    """By the name that this version of transformers has for it."""
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enable:
        getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{prefix}_checkpointing_disable")()


def environment(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def describe_line(line: dict[str, Any]) -> str:
    setting = (
        f"{line['size']} {line['attention']}{'' if line['isolate'] else ' not isolated'}, "
        f"{'compiled' if line['compile'] else 'eager mode'}, {line['rows']} rows a forward"
        f"{', checkpointing' if line['checkpointing'] else ''}"
    )
    if "error" in line:
        return f"{setting}: {line['error']}"
    used = f", MFU {line['mfu']:.1%} ({line['mfu_row']:.1%} by whole rows)" if line["mfu"] else ""
    memory = f", {line['peak_gib']:.0f} GiB" if line["peak_gib"] else ""
    return f"{setting}: {line['units_per_s']:,.0f} units/s{used}{memory}, warm-up {line['warm_up_s']:.0f} s"


def table_of(lines: list[dict[str, Any]]) -> str:
    """A Markdown table, the fastest first."""
    rows = [
        "| size | attention | isolated | compiled | rows a forward | checkpointing | units/s | MFU | "
        "by whole rows | GiB |",
        "|---|---|---|---|--:|---|--:|--:|--:|--:|",
    ]
    yes = {True: "yes", False: "no"}
    for line in sorted(lines, key=lambda line: -line.get("tokens_per_s", 0)):
        first = (
            f"| {line['size']} | {line['attention']} | {yes[line['isolate']]} | {yes[line['compile']]} | "
            f"{line['rows']} | {yes[line['checkpointing']]} | "
        )
        if "error" in line:
            rows.append(f"{first}{line['error'][:80]} | | | |")
            continue
        share = [f"{line[name]:.1%}" if line[name] else "" for name in ("mfu", "mfu_row")]
        memory = f"{line['peak_gib']:.0f}" if line["peak_gib"] else ""
        rows.append(f"{first}{line['units_per_s']:,.0f} | {share[0]} | {share[1]} | {memory} |")
    return "\n".join(rows)


def describe(figures: dict[str, Any]) -> str:
    """A few lines on one size."""
    stories = figures["story_units"]
    lines = [
        f"{figures['size']} ({figures['parameters'] / 1e6:.1f} M parameters), {figures['stories']} stories a "
        f"step of {stories['mean']:.0f} +- {stories['sd']:.0f} units, {figures['rounds']} rounds; packed: "
        f"{figures['attention']}"
    ]
    for name, way in figures["ways"].items():
        lines.append(
            f"  {name:<16} {way['units_per_s']:>10,.0f} units/s   padding {way['padding']:6.1%}   "
            f"ratio {way['ratio']:.2f} [{way['ratio_low']:.2f}, {way['ratio_high']:.2f}]   of CPU time "
            f"{way['cpu_ratio']:.2f} [{way['cpu_ratio_low']:.2f}, {way['cpu_ratio_high']:.2f}]"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=[*SIZES], default=["tiny", "mid"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-length", type=int, default=2_048, help="tokens of a packed row")
    parser.add_argument("--stories", type=int, default=16, help="stories of a step")
    parser.add_argument("--repeats", type=int, default=15, help="rounds, or steps of a setting")
    parser.add_argument("--attention", nargs="+", choices=ATTENTIONS, help="beside the default")
    parser.add_argument("--wait-steps", type=int, default=12, help="0: do not measure the waiting")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    group = parser.add_argument_group("settings to try")
    group.add_argument("--matrix", action="store_true")
    group.add_argument("--compile", choices=["yes", "no", "both"], default="both")
    group.add_argument("--rows", nargs="+", type=int, default=[16, 8, 32, 48], help="rows of one forward")
    group.add_argument("--micro-batches", type=int, default=2, help="forwards of a step")
    group.add_argument("--warm-up", type=int, default=4, help="steps before the clock runs")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on CUDA")
    group.add_argument("--gpu", default="h200", help=f"peak by name: {', '.join(cost.GPUS)}")
    group.add_argument("--minutes", type=float, default=1e9, help="start no setting after so many")
    group.add_argument("--out", default="train-matrix.jsonl")
    args = parser.parse_args()
    if args.repeats < 6:
        parser.error("--repeats must be at least 6: fewer rounds have no 95% interval of a median.")
    torch.set_num_threads(args.threads)
    args.dtype = args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")

    report: dict[str, list] = {"matrix": [], "compare": [], "waiting": []}
    tell: Callable[[str], None] = (lambda text: None) if args.json else (lambda text: print(text, flush=True))
    for size in args.size:
        if args.matrix:
            report["matrix"] += matrix(size, args)
            continue
        report["compare"].append(compare(size, args))
        tell(describe(report["compare"][-1]))
        for workers in (0, 1) if args.wait_steps else ():
            figures = waiting(size, workers, args)
            report["waiting"].append(figures)
            tell(
                f"  waiting, {workers} workers: {figures['share']:.2%} of the time "
                f"({figures['wait_ms']:.1f} ms beside {figures['step_ms']:.0f} ms; at most "
                f"{figures['most']:.1%} of a step)"
            )
    if args.json:
        print(json.dumps(report, indent=2))
    elif args.matrix:
        print(table_of(report["matrix"]))


if __name__ == "__main__":
    main()
