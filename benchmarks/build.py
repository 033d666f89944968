"""Stories per second by stage, scaling to two processes, and peak memory of `hf-clsi build`.

stages: one process makes shards of grammar stories with espeak-ng and an embedded tokenizer that is given,
units alone and with audio. Times are those of `ShardSummary.stage_seconds`; `files` is what no stage counts:
drafts read, Parquet written and flushed to disk. The grammar tells both languages, so nothing is translated.
A first shard, not counted, warms up.

scaling: the same shards made by this process, as num_processes=1 makes them, by one child process, and by
two, as num_processes=2 makes them. The children live through all rounds, so that the start of a process
(importing torch and transformers), given beside the ratio, is in no time, and neither are planning and
finishing. The three take turns; a ratio is of the times of one round, and its median and range are given. A
round counts if other processes left the machine alone; there are more of them, up to --patience, until
--repeats count.

memory: peak of a whole build and of reading it back row by row in three ways, each in a fresh process
(peak.py), as the number of stories grows. An engine that hums speaks them, into a tokenizer for waveforms of
800 Hz: as many sentences, and as many units in them, as of speech, in minutes and not hours. What is held of
each story is as large as with speech; the portion of waveforms that is in memory is a twentieth. `--espeak`
adds the real thing for the smallest number of stories.

    python benchmarks/build.py stages --stories 200 --repeats 7
    python benchmarks/build.py scaling --stories 100 --repeats 9
    python benchmarks/build.py memory --stories 1000 10000 100000 --espeak
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import numpy as np
import torch
from peak import children

from hf_clsi import ClsiUnitsConfig, ClsiUnitsModel
from hf_clsi.rows.builders import BuildSettings, build, prepare
from hf_clsi.rows.jobs import ShardJob, Tools
from hf_clsi.rows.running import ShardWorker
from hf_clsi.speech.synthesis import SynthesisEngine, SynthesisRequest, SynthesisWorker

CALM = 0.1  # of a core, used by other processes during a round that counts
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["stages", "scaling", "memory"])
    parser.add_argument(
        "--stories",
        type=int,
        nargs="+",
        help="of a shard (stages: 200), of a round (scaling: 100), or all sizes (memory: 1000 10000 100000)",
    )
    parser.add_argument("--shards", type=int, default=10, help="scaling: shards of a round (default: 10)")
    parser.add_argument("--repeats", type=int, default=7, help="shards, or rounds (default: 7)")
    parser.add_argument("--patience", type=int, default=40, help="scaling: rounds until enough are calm (40)")
    parser.add_argument("--espeak", action="store_true", help="memory: the smallest size with espeak-ng, too")
    parser.add_argument("--scratch", help="folder for a temporary folder (default: the system's)")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("CPU time and memory are read from /proc, which this system does not have")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        if args.what == "stages":
            report_stages(Path(scratch), (args.stories or [200])[0], args.repeats)
        elif args.what == "scaling":
            report_scaling(
                Path(scratch), (args.stories or [100])[0], args.shards, args.repeats, args.patience
            )
        else:
            report_memory(Path(scratch), sorted(args.stories or [1_000, 10_000, 100_000]), args.espeak)


# ---- Stages


def report_stages(scratch: Path, stories: int, repeats: int) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several processes has it
    tokenizer = fitted_tokenizer(scratch)
    print(f"{repeats} shards of {stories} stories, espeak-ng, {circumstances()}")
    for audio in (False, True):
        folder = scratch / f"audio-{audio}"
        settings = story_settings((repeats + 1) * stories, tokenizer, audio, rows_per_shard=stories)
        started = time.perf_counter()
        plan = prepare(settings, folder, progress=False)
        seconds = {"plan": [(time.perf_counter() - started) / (repeats + 1)]}
        seconds |= {stage: [] for stage in ("speak", "encode", "write", "files", "all but plan")}
        tools = Tools(plan, folder)
        ShardJob(folder, "train", 0, tools).run()  # warms up
        used = own_seconds()
        for index in range(1, repeats + 1):
            started = time.perf_counter()
            counted = ShardJob(folder, "train", index, tools).run().stage_seconds
            taken = time.perf_counter() - started
            for stage, value in counted.items():
                seconds[stage].append(value)
            seconds["files"].append(taken - sum(counted.values()))
            seconds["all but plan"].append(taken)
        used = own_seconds() - used
        tools.close()
        whole = sum(seconds["all but plan"])
        print(f"\n{'units and audio' if audio else 'units only'}\n")
        print("| stage | stories/s | range | of the time |\n|---|--:|--:|--:|")
        for stage, values in seconds.items():
            rates = [stories / value for value in values]
            share = f"{sum(values) / whole:.1%}" if stage != "plan" else ""
            print(f"| {stage} | {statistics.median(rates):,.1f} | {spread(rates, ',.1f')} | {share} |")
        print(
            f"\n{repeats * stories / used:.1f} stories a second of CPU time, {used / whole:.2f} cores in use"
        )
    torch.set_num_threads(num_threads)


# ---- Scaling


def report_scaling(scratch: Path, stories: int, shards: int, repeats: int, patience: int) -> None:
    folder = scratch / "dataset"
    settings = story_settings(stories, fitted_tokenizer(scratch), rows_per_shard=-(-stories // shards))
    plan = prepare(settings, folder, progress=False)
    todo = [("train", index) for index in range(plan.shards["train"])]
    print(f"{stories} stories in {len(todo)} shards, espeak-ng, {circumstances()}")

    tools = Tools(plan, folder)
    ShardJob(folder, "validation", 0, tools).run()  # one story, so that everything is loaded
    workers: list[ShardWorker] = []
    starts = []
    for _ in range(2):
        started = time.perf_counter()
        workers.append(ShardWorker(folder, 1, None))
        workers[-1].make("validation", 0, ignore)
        starts.append(time.perf_counter() - started)
    ways: dict[str, Callable[[], Any]] = {
        "this process": lambda: [ShardJob(folder, *shard, tools).run() for shard in todo],
        "1 child": lambda: make_shards(workers[:1], todo),
        "2 children": lambda: make_shards(workers, todo),
    }
    rounds: list[dict[str, Run]] = []
    try:
        while len(rounds) < patience and len(calm_rounds(rounds)) < repeats:
            first = len(rounds) % len(ways)
            names = list(ways)[first:] + list(ways)[:first]
            rounds.append({name: timed(ways[name]) for name in names})
    finally:
        tools.close()
        for worker in workers:
            worker.close()

    calm = calm_rounds(rounds)
    print(f"{len(calm)} of {len(rounds)} rounds in which others used at most {CALM:.0%} of a core")
    if len(calm) < repeats:
        print("too few: the machine is busy, and the figures are of all rounds")
        calm = rounds
    print("\n| made by | s | range | stories/s | cores in use | by others |\n|---|--:|--:|--:|--:|--:|")
    for name in ways:
        seconds = [each[name].seconds for each in calm]
        cores = statistics.median(each[name].cores for each in calm)
        others = statistics.median(each[name].others for each in calm)
        middle = statistics.median(seconds)
        print(
            f"| {name} | {middle:.1f} | {spread(seconds, '.1f')} | {stories / middle:.1f} "
            f"| {cores:.2f} | {others:.2f} |"
        )
    print()
    for name in list(ways)[:2]:
        ratios = [each[name].seconds / each["2 children"].seconds for each in calm]
        print(f"{name} / 2 children: {statistics.median(ratios):.2f} ({spread(ratios, '.2f')})")
    print(f"a process and its first story: {min(starts):.1f} s, in none of the times")


@dataclass(frozen=True)
class Run:
    """seconds: on the clock. cores, others: that this benchmark and all other processes used meanwhile."""

    seconds: float
    cores: float
    others: float


def timed(work: Callable[[], Any]) -> Run:
    busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    work()
    taken, own = time.perf_counter() - started, own_seconds() - own
    return Run(taken, own / taken, max(0.0, busy_seconds() - busy - own) / taken)


def calm_rounds(rounds: Sequence[dict[str, Run]]) -> list[dict[str, Run]]:
    return [each for each in rounds if all(run.others <= CALM for run in each.values())]


def make_shards(workers: Sequence[ShardWorker], shards: Sequence[tuple[str, int]]) -> None:
    """As hf_clsi.rows.running has them made: a thread for each process, and all take from one queue."""
    queue: SimpleQueue[tuple[str, int]] = SimpleQueue()
    for shard in shards:
        queue.put(shard)

    def run(worker: ShardWorker) -> None:
        with suppress(Empty):
            while True:
                worker.make(*queue.get_nowait(), ignore)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(run, workers))


def ignore(rows: int) -> None:
    pass


# ---- Memory

READINGS = ("read_rows", "load_dataset", "streaming")


def report_memory(scratch: Path, sizes: Sequence[int], espeak: bool) -> None:
    tokenizer = humming_tokenizer(scratch / "humming")
    print(f"{circumstances()}\n")
    print("| | peak, MiB | its own | s | |\n|---|--:|--:|--:|---|")
    for step in ("build", *READINGS):
        print_memory(f"imports: {step}", in_fresh_process(f"import-{step}", tokenizer))
    for stories in sizes:
        settings = story_settings(stories, str(tokenizer))
        report_curve(scratch / f"hum-{stories}", replace(settings, engine="build:HummingEngine"))
    if espeak:
        report_curve(scratch / f"espeak-{sizes[0]}", story_settings(sizes[0], fitted_tokenizer(scratch)))


def report_curve(folder: Path, settings: BuildSettings) -> None:
    """A dataset built and read, each in a process of its own."""
    Path(f"{folder}.settings.json").write_text(json.dumps(settings.to_dict()))
    built = in_fresh_process("build", folder)
    size = sum(file.stat().st_size for file in folder.glob("*/*.parquet")) / (1 << 20)
    print_memory(
        f"{folder.name}: build", built, f"{built['rows']:,} rows, {built['units']:,} units, {size:.1f} MiB"
    )
    for reading in READINGS:
        figures = in_fresh_process(reading, folder)
        if figures["rows"] != built["rows"]:
            raise RuntimeError(f"{reading} gives {figures['rows']} of {built['rows']} rows")
        print_memory(f"{folder.name}: {reading}", figures)


def print_memory(name: str, figures: dict[str, Any], remark: str = "") -> None:
    if figures["engine"]:
        remark += f"; and the engine's process {figures['engine']:.0f}"
    print(
        f"| {name} | {figures['peak']:.0f} | {figures['own']:.0f} | {figures['seconds']:.1f} | {remark} |",
        flush=True,
    )


def in_fresh_process(step: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}.cache", "HF_HUB_OFFLINE": "1"}
    package = str(HERE.parent)  # this very copy of hf_clsi
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(HERE / "peak.py"), step, str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- What is built


def story_settings(
    stories: int, tokenizer: str | None, audio: bool = False, rows_per_shard: int | None = None
) -> BuildSettings:
    return BuildSettings(
        "tinystories-en-fr", num_items=stories, num_validation=1, audio=audio, audio_tokenizer=tokenizer,
        rows_per_shard=rows_per_shard,
    )  # fmt: skip


def fitted_tokenizer(scratch: Path) -> str:
    """Folder of a dataset whose tokenizer was fitted on a few stories: 64 units, 12.5 Hz, as by default."""
    build(story_settings(40, None), scratch / "fitted", progress=False)
    return str(scratch / "fitted")


def humming_tokenizer(folder: Path) -> Path:
    """64 units at 12.5 Hz, not fitted, of what the engine below gives."""
    torch.manual_seed(0)
    config = ClsiUnitsConfig(
        sampling_rate=HummingEngine.sampling_rate_hz, hop_length=64, inner_hop_length=64, window_length=64,
        n_fft=64, num_mel_bins=8, num_mfcc=4, num_deltas=0, num_units=64,
    )  # fmt: skip
    ClsiUnitsModel(config).save_pretrained(folder)
    return folder


@cache
def hum(word: str, octave: int) -> np.ndarray:
    """300 ms, about what a word takes; its pitch is a hash of it."""
    pitch_hz = (40 + blake2b(word.encode(), digest_size=1).digest()[0] / 4) * 2**octave
    time_s = np.arange(240) / HummingEngine.sampling_rate_hz
    return (0.5 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


class HummingWorker(SynthesisWorker):
    def synthesize(self, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        return [
            np.concatenate([hum(word, int(request.voice[-1])) for word in request.text.split()])
            for request in requests
        ]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class HummingEngine(SynthesisEngine):
    """The engine of tests/rows/tone_engine.py at a rate so low that 100,000 stories take minutes."""

    name: ClassVar[str] = "hum"
    licence: ClassVar[str] = "CC0-1.0"
    sampling_rate_hz: ClassVar[int] = 800
    version: ClassVar[str] = "1"

    def settings(self) -> dict:
        return {}

    def speakers(self) -> tuple[str, ...]:
        return ("low", "high")

    def voice_for(self, language: str, speaker: str = "") -> str:
        return f"{language}-{('low', 'high').index(speaker)}"

    def open_worker(self) -> HummingWorker:
        return HummingWorker()


# ---- The machine


def circumstances() -> str:
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, torch {torch.__version__}"


def spread(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}}–{max(values):{form}}"


def busy_seconds() -> float:
    """CPU time that all processes of the machine have taken, since it was started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """The same of this process, its children that are alive, and theirs, dead ones included."""
    ticks = 0
    for pid in (os.getpid(), *children(os.getpid())):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # user, system; the same of its dead children
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
