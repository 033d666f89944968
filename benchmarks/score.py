"""Items per second of `score_items` beside the usual way of scoring cloze items, on the same model and items.

The usual way: every item's two full sequences (prompt + ending) are separate rows, items in the order they
come, padded in a batch with a 2D attention mask (the way of slamkit's modelling metric). Ours:
`hf_clsi.score_items`, each prompt once. Both score the span `whole`; the pass for `gain`, which the usual way
does not have, is timed beside it. Run it on an idle machine.

    python benchmarks/score.py                         # 1,871 items, a small Llama, CPU
    python benchmarks/score.py --preset 360m --device cuda --dtype float32
    python benchmarks/score.py --symmetric             # items in symmetric pairs, as in the miniature
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from hf_clsi.scores.likelihood import score_items

# Shapes of the models: the miniature's, one that fills a CPU, and the body of Qwen2-0.5B (the paper's 360M).
PRESETS = {
    "tiny": {
        "kind": "llama",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "small": {
        "kind": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "360m": {
        "kind": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
NUM_UNITS = 2048  # Mimi's first codebook


def build_model(preset: str, seed: int) -> PreTrainedModel:
    """A random model; a spread of weights wide enough that its scores differ from item to item."""
    sizes = dict(PRESETS[preset])
    kind = sizes.pop("kind")
    sizes |= {"vocab_size": NUM_UNITS + 3, "max_position_embeddings": 2048, "initializer_range": 0.05}
    torch.manual_seed(seed)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def build_items(count: int, seed: int, symmetric: bool) -> list[dict]:
    """Items of four prompt sentences and two endings of random units.

    A sentence lasts 1 to 6 s, about log-normal around 2.5 s: 31 units at 12.5 Hz, as read StoryCloze
    sentences do.
    """
    rng = np.random.default_rng(seed)

    def sentence() -> np.ndarray:
        seconds = float(np.clip(rng.lognormal(np.log(2.5), 0.3), 1.0, 6.0))
        return rng.integers(0, NUM_UNITS, round(seconds * 12.5))

    items = []
    while len(items) < count:
        a, b = [sentence() for _ in range(4)], [sentence() for _ in range(4)]
        end_a, end_b = sentence(), sentence()
        items.append({"id": str(len(items)), "prompt": a, "correct": end_a, "negative": end_b})
        if symmetric and len(items) < count:
            items.append({"id": str(len(items)), "prompt": b, "correct": end_b, "negative": end_a})
    return items


@torch.inference_mode()
def usual_way(
    model, items: list[dict], bos: int, batch_items: int, device: torch.device
) -> tuple[np.ndarray, int]:
    """Mean log-probability of whole sequences, float64 [n, 2], and the tokens computed, padding included."""
    scores = np.zeros((len(items), 2))
    computed = 0
    for k, which in enumerate(("correct", "negative")):
        for start in range(0, len(items), batch_items):
            batch = items[start : start + batch_items]
            rows = [np.concatenate([[bos], *item["prompt"], item[which]]) for item in batch]
            width = max(map(len, rows))
            tokens = np.zeros((len(rows), width), dtype=np.int64)
            mask = np.zeros((len(rows), width), dtype=np.int64)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = row
                mask[i, : len(row)] = 1
            ids, own = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
            logits = model(input_ids=ids, attention_mask=own, use_cache=False).logits
            logps = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]
            kept = own[:, 1:]
            scores[start : start + len(batch), k] = (
                ((logps * kept).sum(1) / kept.sum(1)).double().cpu().numpy()
            )
            computed += tokens.size
    return scores, computed


def counted_tokens(model) -> list[int]:
    """A list that collects how many tokens every forward of `model` computes, padding included."""
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return seen


def timed(function, device: torch.device, repeats: int):
    """(result, seconds of the fastest of `repeats` runs)."""
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="small", help="model shape (default: small)"
    )
    parser.add_argument("--items", type=int, default=1871, help="number of items (default: 1871, StoryCloze)")
    parser.add_argument(
        "--symmetric", action="store_true", help="items in pairs that share their two endings"
    )
    parser.add_argument(
        "--batch-items", type=int, default=16, help="rows of a batch the usual way (default: 16)"
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, help="tokens of our batches (default: 4096)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each; the fastest counts (default: 1)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    device, bos = torch.device(args.device), NUM_UNITS
    model = build_model(args.preset, args.seed).to(device, getattr(torch, args.dtype))
    items = build_items(args.items, args.seed, args.symmetric)
    seen = counted_tokens(model)

    def ours(gain: bool):
        return score_items(
            model, items, bos_token_id=bos, batch_tokens=args.batch_tokens, gain=gain, progress=False
        )

    # One short run of each warms up kernels and allocator.
    usual_way(model, items[:32], bos, args.batch_items, device)
    score_items(model, items[:32], bos_token_id=bos, batch_tokens=args.batch_tokens, progress=False)

    peak = {}

    def measured(name, function):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result, seconds = timed(function, device, args.repeats)
        if device.type == "cuda":
            peak[name] = round(torch.cuda.max_memory_allocated() / 2**20)
        else:  # the process's high-water mark so far; ours runs first, so the usual way's can only be higher
            peak[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return result, seconds

    seen.clear()
    scores, ours_s = measured("ours", lambda: ours(gain=False))
    our_tokens = sum(seen) // args.repeats
    (usual, usual_tokens), usual_s = measured(
        "usual", lambda: usual_way(model, items, bos, args.batch_items, device)
    )
    with_gain, gain_s = timed(lambda: ours(gain=True), device, 1)

    whole = scores.score("whole", "mean")
    report = {
        "preset": args.preset,
        "device": str(device),
        "dtype": args.dtype,
        "threads": args.threads,
        "items": len(items),
        "symmetric": args.symmetric,
        "usual_items_per_s": round(len(items) / usual_s, 2),
        "ours_items_per_s": round(len(items) / ours_s, 2),
        "speed_ratio": round(usual_s / ours_s, 3),
        "ours_with_gain_items_per_s": round(len(items) / gain_s, 2),
        "usual_tokens": usual_tokens,
        "ours_tokens": our_tokens,
        "token_ratio": round(usual_tokens / our_tokens, 3),
        "max_score_difference": float(np.abs(whole - usual).max()),
        "score_std": round(float(whole.std()), 4),
        "usual_accuracy": float((usual[:, 0] > usual[:, 1]).mean()),
        "ours_accuracy": float((whole[:, 0] > whole[:, 1]).mean()),
        "gain_pass_changes_whole": float(np.abs(with_gain.score("whole", "mean") - whole).max()),
        "peak_memory_mib": peak,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
