"""How much faster `encode_waveforms` takes sentences through a Mimi of the real size than `MimiModel.encode`,
called clip by clip with its defaults (all 32 codebooks); and how fast the embedded tokenizer is beside them.

Weights are random; the first codebook is drawn around latents of other clips, so that units vary and equal
units mean something. Clips are padded to whole frames beforehand, for both: the last unit would otherwise
depend on what follows. Units that differ are listed with how near the two came.

Each way lives in a process of its own (memory that one has made the system hand out is faster for the next),
on the same number of threads. They take turns on groups of clips, each time another one first. `ratio` is
their time / our time on the same group, the median over the groups and the range. CPU time leaves out what
other programs took of the machine; with several threads it counts them all, waiting ones too.

    python benchmarks/encode.py                                                      # noise, 1 to 6 s
    python benchmarks/encode.py --recordings ../shared/data/parallel_prompts_en_fr   # speech
    python benchmarks/encode.py --only-embedded     # the embedded tokenizer alone, by batch_seconds
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import transformers

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.modeling_clsi_units import ClsiUnitsModel
from hf_clsi.speech.audio import read_audio, resample
from hf_clsi.units.encode import encode_waveforms, load_audio_tokenizer

SAMPLING_RATE, FRAME = 24_000, 1_920  # of Mimi
REFERENCE, ONE_CODEBOOK = "MimiModel.encode, clip by clip", "the same, num_quantizers=1"
OURS, EMBEDDED = "encode_waveforms, Mimi", "encode_waveforms, embedded"
WAYS = (REFERENCE, ONE_CODEBOOK, OURS, EMBEDDED)


def noises(seconds: float, seed: int, shortest: float = 1.0, longest: float = 6.0) -> list[np.ndarray]:
    """About `seconds` of clips of noise whose color and level drift, float32 at 24 kHz."""
    rng = np.random.default_rng(seed)
    clips, left = [], seconds
    while left > 0:
        length = int(SAMPLING_RATE * rng.uniform(shortest, longest))
        noise = rng.standard_normal(length + 64)
        smooth = np.convolve(noise, np.ones(65) / 8, mode="valid")
        blend = np.sin(np.arange(length) / rng.uniform(1000, 6000)) ** 2
        clips.append((0.1 * (blend * smooth + (1 - blend) * noise[:length])).astype(np.float32))
        left -= length / SAMPLING_RATE
    return clips


def recordings(folder: Path, seconds: float, seed: int) -> list[np.ndarray]:
    """About `seconds` of the audio files below a folder, drawn at random, float32 at 24 kHz."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav", ".mp3", ".ogg"))
    clips, left = [], seconds
    for index in np.random.default_rng(seed).permutation(len(paths)):
        if left <= 0:
            break
        clips.append(read_audio(paths[index], sampling_rate_hz=SAMPLING_RATE)[0])
        left -= len(clips[-1]) / SAMPLING_RATE
    if left > 0:
        raise SystemExit(
            f"{folder} holds {seconds - left:.0f} s of audio, but {seconds:.0f} s were asked for."
        )
    return clips


def whole_frames(clip: np.ndarray) -> np.ndarray:
    """A clip with zeros to the end of its last frame."""
    return np.pad(clip, (0, -len(clip) % FRAME))


def seconds_of(clips: list[np.ndarray]) -> float:
    """Length of all clips at 24 kHz."""
    return sum(map(len, clips)) / SAMPLING_RATE


@torch.no_grad()
def first_latents(model: transformers.MimiModel, clip: np.ndarray) -> torch.Tensor:
    """A clip -> what its frames look like to the first codebook [frames, 256]."""
    held = []
    projection = model.quantizer.semantic_residual_vector_quantizer.input_proj
    hook = projection.register_forward_hook(lambda module, inputs, output: held.append(output[0].T))
    try:
        model.encode(torch.from_numpy(clip)[None, None], num_quantizers=1)
    finally:
        hook.remove()
    return held[0]


@torch.no_grad()
def random_mimi(clips: list[np.ndarray], seed: int) -> transformers.MimiModel:
    """A Mimi of the real size: random weights, and codebooks as wide as the latents of these clips."""
    torch.manual_seed(seed)
    model = transformers.MimiModel(transformers.MimiConfig()).eval()
    points = torch.cat([first_latents(model, clip) for clip in clips])
    first = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    near = points[torch.randint(len(points), (len(first.embed_sum),))]
    first.embed_sum.copy_(near + 0.5 * points.std(0) * torch.randn_like(near))
    first._embed = None  # what it computed from the zeros that it began with
    for layer in model.quantizer.acoustic_residual_vector_quantizer.layers:
        layer.codebook.embed_sum.normal_(std=float(points.std()))
    return model


def encoder(way: str, checkpoint: str) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """Function of clips at 24 kHz -> the units of each."""
    if way == EMBEDDED:
        torch.manual_seed(0)
        embedded = ClsiUnitsModel(ClsiUnitsConfig()).eval()
        return lambda clips: encode_waveforms(clips, embedded, progress=False)
    model = load_audio_tokenizer(checkpoint)
    if way == OURS:
        return lambda clips: encode_waveforms(clips, model, progress=False)
    settings = {"num_quantizers": 1} if way == ONE_CODEBOOK else {}

    @torch.no_grad()
    def encode(clips: list[np.ndarray]) -> list[np.ndarray]:
        return [
            model.encode(torch.from_numpy(clip)[None, None], **settings).audio_codes[0, 0].numpy()
            for clip in clips
        ]

    return encode


def serve(connection: Connection, way: str, threads: int, checkpoint: str) -> None:
    """In a process of its own: clips in; units, wall and CPU seconds, page faults out."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    encode = encoder(way, checkpoint)
    while (clips := connection.recv()) is not None:
        if way == EMBEDDED:
            clips = [resample(clip, SAMPLING_RATE, 16_000) for clip in clips]
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        wall, cpu = time.perf_counter(), time.process_time()
        units = encode(clips)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        connection.send((units, wall, cpu, faults))


def median_and_range(values: list[float], digits: int = 2) -> str:
    """`median [lowest, highest]`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def compare(
    groups: list[list[np.ndarray]], threads: int, checkpoint: str
) -> dict[str, list[list[np.ndarray]]]:
    """Print the ratios on this many threads; the units of every way, by group and clip."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is loaded there
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for way in WAYS:
        pipes[way], theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, way, threads, checkpoint), daemon=True)
        process.start()
        processes.append(process)
        pipes[way].send(groups[0][:2])  # to warm up
        pipes[way].recv()
    units: dict[str, list] = {way: [] for way in WAYS}
    taken: dict[str, list[tuple]] = {way: [] for way in WAYS}
    for turn, group in enumerate(groups):
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
            pipes[way].send(group)
            found, *numbers = pipes[way].recv()
            units[way].append(found)
            taken[way].append(tuple(numbers))
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()

    total = sum(map(seconds_of, groups))
    print(f"\n{threads} thread(s), {len(groups)} groups: ratio to {REFERENCE} (median [range])")
    for way in WAYS[1:]:
        wall, cpu = (
            [theirs[kind] / ours[kind] for theirs, ours in zip(taken[REFERENCE], taken[way], strict=True)]
            for kind in (0, 1)
        )
        print(f"  {way:<32} wall {median_and_range(wall)}   CPU {median_and_range(cpu)}")
    print("  seconds of audio per second (median [range]); page faults per second of audio")
    for way in WAYS:
        rates = [seconds_of(group) / numbers[0] for group, numbers in zip(groups, taken[way], strict=True)]
        faults = sum(numbers[2] for numbers in taken[way]) / total
        print(f"  {way:<32} {median_and_range(rates, 1)}; {faults:,.0f}")
    return units


def report_units(
    groups: list[list[np.ndarray]], units: dict[str, list[list[np.ndarray]]], checkpoint: str
) -> None:
    """Print how many units differ, and how near to each other the codebook's entries are for these frames."""
    model = load_audio_tokenizer(checkpoint)
    entries = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed.double()
    clips = [clip for group in groups for clip in group]
    theirs, ours = ([clip for group in units[way] for clip in group] for way in (REFERENCE, OURS))
    everything = np.concatenate(theirs)
    different = sum(int((a != b).sum()) for a, b in zip(theirs, ours, strict=True))
    print(f"  units: {different} of {len(everything):,} differ ({len(np.unique(everything)):,} distinct)")
    gaps = []
    for index, (clip, a, b) in enumerate(zip(clips, theirs, ours, strict=True)):
        if np.array_equal(a, b) and index >= len(groups[0]):  # one group is enough for a picture
            continue
        distances = torch.cdist(first_latents(model, clip).double(), entries)
        nearest = distances.topk(2, largest=False).values
        gaps.append((nearest[:, 1] / nearest[:, 0] - 1).numpy())
        for frame in np.flatnonzero(a != b):
            apart = distances[frame, int(b[frame])] / distances[frame, int(a[frame])] - 1
            print(f"    clip {index}, frame {frame}: our entry is {float(apart):+.1e} farther than theirs")
    gaps = np.concatenate(gaps)
    print(
        f"  the second nearest entry is farther than the nearest by {np.median(gaps):.1e} (median), at least "
        f"{gaps.min():.1e} ({len(gaps):,} frames)"
    )


def embedded_by_batch(clips: list[np.ndarray], threads: int, repeats: int) -> None:
    """Print the embedded tokenizer's rate for short clips, by batch_seconds, in turns."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ClsiUnitsModel(ClsiUnitsConfig()).eval()
    clips = [resample(clip, SAMPLING_RATE, 16_000) for clip in clips]
    total = sum(map(len, clips)) / 16_000
    sizes = (0.01, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
    rates: dict[float, list[float]] = {size: [] for size in sizes}
    expected = encode_waveforms(clips, model, progress=False)
    for _ in range(repeats):
        for size in sizes:
            start = time.process_time()
            units = encode_waveforms(clips, model, batch_seconds=size, progress=False)
            rates[size].append(total / (time.process_time() - start))
            if any(not np.array_equal(a, b) for a, b in zip(units, expected, strict=True)):
                raise SystemExit(f"units differ at batch_seconds={size}")
    print(f"embedded tokenizer, {len(clips)} clips, {total:.0f} s, {threads} thread(s), units equal")
    for size in sizes:
        ratios = [rate / base for rate, base in zip(rates[size], rates[60.0], strict=True)]
        name = "one by one" if size < 1 else f"batch_seconds={size:g}"
        print(f"  {name:<18} {median_and_range(ratios)} of the rate at 60;", end=" ")
        print(f"{median_and_range(rates[size], 0)} s of audio per s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=Path, help="folder of audio files (default: noise, 1 to 6 s)")
    parser.add_argument("--group-seconds", type=float, default=50.0, help="audio encoded in one turn")
    parser.add_argument("--groups", type=int, default=7, help="turns, each on other clips")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only-embedded", action="store_true", help="leave Mimi out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if args.only_embedded:
        clips = noises(600.0, args.seed, shortest=1.0, longest=3.0)
        embedded_by_batch(clips, args.threads[0], repeats=7)
        return

    if args.recordings is None:
        clips = noises(args.group_seconds * args.groups, args.seed)
    else:
        clips = recordings(args.recordings, args.group_seconds * args.groups, args.seed)
    clips = [whole_frames(clip) for clip in clips]
    groups = [clips[turn :: args.groups] for turn in range(args.groups)]
    lengths = np.percentile([len(clip) / SAMPLING_RATE for clip in clips], [0, 25, 50, 75, 100])
    print(
        f"{len(clips)} clips, {seconds_of(clips):.0f} s; shortest, quartiles and longest "
        f"{' '.join(f'{length:.1f}' for length in lengths)} s; torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as checkpoint:
        random_mimi([whole_frames(clip) for clip in noises(40.0, args.seed + 1)], args.seed).save_pretrained(
            checkpoint
        )
        for threads in args.threads:
            units = compare(groups, threads, checkpoint)
            report_units(groups, units, checkpoint)


if __name__ == "__main__":
    main()
