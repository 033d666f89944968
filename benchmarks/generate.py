"""Units per second and real-time factor of `generate`, ours beside the plain decoder of transformers.

The plain decoder is the class that transformers has for the same body (Llama for tiny and 1b, Qwen2 for
360m), of the same size, on the very same weight tensors, with the same generation config and prompts; both
must generate the same ids, or the run fails. What differs is our wrapper alone, and it should cost nothing.

The two take turns, and which of them goes first changes every time, so that a noisy machine disturbs both
alike. `ratio` is plain time / our time: the median over the pairs of neighboring runs, with the order
statistics that hold the true median with 95% confidence. Greedy, a fixed number of new tokens, no audio in
the timing; `--decode` adds the time of turning as many units into a waveform by the embedded tokenizer.

The real-time factor is seconds of speech per second of computing, for one stream and for all of the batch
together. Tokens of a vocabulary with merges and collapsed runs (tiny) stand for more than one unit each:
`--units-per-token` says how many, 1 is the lower bound.

    python benchmarks/generate.py                                         # tiny, CPU, batch 1 and 16
    python benchmarks/generate.py --size 360m --new-tokens 24 --repeats 7
    python benchmarks/generate.py --size 1b --device cuda --dtype bfloat16 --new-tokens 256
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hf_clsi import ClsiConfig, ClsiForCausalLM, ClsiUnitsConfig, ClsiUnitsModel
from hf_clsi.configuration_clsi import SIZES


def build_models(
    size: str, device: torch.device, dtype: torch.dtype, seed: int
) -> tuple[ClsiForCausalLM, PreTrainedModel]:
    """Our model with random weights, and the plain decoder holding the same tensors."""
    torch.manual_seed(seed)
    config = ClsiConfig.from_size(size)
    with torch.device(device):
        ours = ClsiForCausalLM(config).to(dtype).eval()
        plain = AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config)).to(dtype).eval()
    weights = {name.replace("model.language_model.", "model."): w for name, w in ours.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    return ours, plain


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each function; one of each is a round, and every round starts with another."""
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(repeats):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            start = time.perf_counter()
            functions[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    """Wait until the accelerator, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics that hold the median of the values' distribution with at least this confidence.

    Free of assumptions on the distribution: of n values, binomial(n, 1/2) many lie below its median.
    For 95% it takes at least 6 of them.
    """
    ordered, n = sorted(values), len(values)
    tail, rank = 0.0, 0  # the interval from the rank-th smallest to the rank-th largest misses with 2 * tail
    while 2 * (tail + math.comb(n, rank) / 2**n) <= 1 - confidence:
        tail += math.comb(n, rank) / 2**n
        rank += 1
    return ordered[rank - 1], ordered[n - rank]


def compare(
    ours: ClsiForCausalLM, plain: PreTrainedModel, batch: int, use_cache: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one batch size, with or without a cache.

    Raises:
        RuntimeError: the two models generate different ids.
    """
    config: ClsiConfig = ours.config
    generation: GenerationConfig = copy.deepcopy(ours.generation_config)
    new_tokens = args.new_tokens if use_cache else args.new_tokens_without_cache
    # Ending is forbidden before the last token: every run computes the same number of steps.
    generation.update(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, use_cache=use_cache
    )
    prompt = torch.randint(
        config.num_units,
        (batch, args.prompt_tokens),
        generator=torch.Generator().manual_seed(args.seed),
    ).to(ours.device)
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}

    def generate(model: PreTrainedModel) -> torch.Tensor:
        return model.generate(**inputs, generation_config=generation)

    # The check is the warm-up, too.
    ids, plain_ids = generate(ours), generate(plain)
    if ids.shape[1] != args.prompt_tokens + new_tokens or not torch.equal(ids, plain_ids):
        raise RuntimeError(
            f"Batch {batch}, use_cache={use_cache}: ours and the plain {type(plain).__name__} generated "
            f"different ids ({tuple(ids.shape)} and {tuple(plain_ids.shape)})."
        )
    seconds = in_turns({"ours": lambda: generate(ours), "plain": lambda: generate(plain)}, args.repeats)
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    low, high = median_interval(ratios)
    our_s, plain_s = statistics.median(seconds["ours"]), statistics.median(seconds["plain"])
    units = new_tokens * args.units_per_token
    return {
        "batch": batch,
        "cache": use_cache,
        "new_tokens": new_tokens,
        "ours_s": our_s,
        "plain_s": plain_s,
        "ours_units_per_s": batch * units / our_s,
        "plain_units_per_s": batch * units / plain_s,
        "real_time_factor_of_a_stream": units / our_s / config.frame_rate,
        "real_time_factor": batch * units / our_s / config.frame_rate,
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "same_ids": True,
    }


def decode_figures(config: ClsiConfig, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of turning the units of one batch into waveforms by the embedded tokenizer."""
    num_frames = round(args.new_tokens * args.units_per_token)
    units_config = ClsiUnitsConfig(
        num_units=config.num_units, sampling_rate=config.sampling_rate, hop_length=config.hop_length
    )
    generator = torch.Generator().manual_seed(args.seed)
    tokenizer = ClsiUnitsModel(units_config).eval()
    tokenizer.centroid_mels.copy_(
        torch.randn(tokenizer.centroid_mels.shape, generator=generator) - 3.0
    )  # spectra of noise: as much work as spectra of speech
    tokenizer.to(args.device)
    codes = torch.randint(config.num_units, (batch, 1, num_frames), generator=generator).to(args.device)

    @torch.inference_mode()
    def decode() -> None:
        tokenizer.decode(codes)

    decode()
    seconds = statistics.median(in_turns({"decode": decode}, min(args.repeats, 5))["decode"])
    return {
        "batch": batch,
        "units": num_frames,
        "decode_s": seconds,
        "real_time_factor": batch * num_frames / config.frame_rate / seconds,
    }


def describe(figures: dict[str, Any]) -> str:
    """One line of what `compare` returns."""
    return (
        f"  batch {figures['batch']:>2}, {'cache   ' if figures['cache'] else 'no cache'}, "
        f"{figures['new_tokens']:>4} new: ours {figures['ours_units_per_s']:9.1f} units/s, "
        f"plain {figures['plain_units_per_s']:9.1f}, ratio {figures['ratio']:.3f} "
        f"[{figures['ratio_low']:.3f}, {figures['ratio_high']:.3f}]; "
        f"{figures['real_time_factor_of_a_stream']:.2f} x real time a stream, "
        f"{figures['real_time_factor']:.2f} x in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="a size with a name")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="streams (default: 1 16)")
    parser.add_argument("--cache", choices=["yes", "no", "both"], default="both", help="key-value cache")
    parser.add_argument("--prompt-tokens", type=int, default=38, help="default: 38 (3 s at 12.5 Hz)")
    parser.add_argument("--new-tokens", type=int, default=125, help="default: 125 (10 s at 12.5 Hz)")
    parser.add_argument(
        "--new-tokens-without-cache", type=int, help="each costs a whole forward (default: as with a cache)"
    )
    parser.add_argument("--repeats", type=int, default=21, help="runs of each (default: 21)")
    parser.add_argument("--units-per-token", type=float, default=1.0, help="default: 1")
    parser.add_argument("--decode", action="store_true", help="also time decoding into a waveform")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    if args.repeats < 6:
        parser.error("--repeats must be at least 6: fewer runs have no 95% interval of a median.")
    if args.new_tokens_without_cache is None:
        args.new_tokens_without_cache = args.new_tokens

    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    ours, plain = build_models(args.size, device, dtype, args.seed)
    report: dict[str, Any] = {
        "size": args.size,
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "plain": type(plain).__name__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": args.dtype,
        "threads": args.threads,
        "prompt_tokens": args.prompt_tokens,
        "repeats": args.repeats,
        "runs": [],
    }
    if not args.json:
        print(
            f"{args.size}: {report['parameters'] / 1e6:.1f} M parameters beside {report['plain']}, "
            f"{report['device']}, {args.dtype}, {args.threads} threads, prompt of {args.prompt_tokens}, "
            f"{args.repeats} runs of each",
            flush=True,
        )
    for use_cache in {"yes": [True], "no": [False], "both": [True, False]}[args.cache]:
        for batch in args.batch:
            figures = compare(ours, plain, batch, use_cache, args)
            report["runs"].append(figures)
            if not args.json:
                print(describe(figures), flush=True)
    if args.decode:
        report["decode"] = [decode_figures(ours.config, batch, args) for batch in args.batch]
        if not args.json:
            for figures in report["decode"]:
                print(
                    f"  batch {figures['batch']:>2}, {figures['units']} units each, decoded by the embedded "
                    f"tokenizer: {figures['decode_s']:.3f} s, {figures['real_time_factor']:.1f} x real time"
                )
    if args.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
