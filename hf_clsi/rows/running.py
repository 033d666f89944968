"""The missing shards of a planned build are made on this machine, in this process or in several.

Several processes share nothing but the folder: each loads the plan, its own engine and its own tokenizer. A
child whose parent is killed leaves at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tqdm.auto import tqdm

from .jobs import ShardJob, Tools
from .plan import BuildPlan, drafts_path


def run_shards(
    plan: BuildPlan,
    folder: str | Path,
    num_processes: int = 1,
    num_workers: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Make all missing shards on this machine. Raises as `build` does; finished shards stay."""
    folder = Path(folder)
    missing = plan.missing_shards(folder)
    total = sum(plan.drafts.values())
    left = sum(_drafts_in(folder, *shard) for shard in missing)
    with tqdm(
        total=total, initial=total - left, desc=plan.dataset, unit=" rows", disable=not progress
    ) as bar:
        if num_processes == 1 or len(missing) <= 1:
            tools = Tools(plan, folder, num_workers, device)
            try:
                for shard in missing:
                    ShardJob(folder, *shard, tools, bar.update).run()
            finally:
                tools.close()
        else:
            _run_processes(folder, missing, num_processes, num_workers, device, bar.update)


def _drafts_in(folder: Path, split: str, index: int) -> int:
    with open(drafts_path(folder, split, index), "rb") as file:
        return sum(1 for _ in file)


class ShardWorker:
    """A child process that makes the shards which it is told (rows/worker.py has the protocol)."""

    def __init__(self, folder: Path, num_workers: int, device: str | None):
        command = [sys.executable, "-m", "hf_clsi.rows.worker", str(folder), str(num_workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # side by side, threads wait for each other
        package = str(Path(__file__).parents[2])  # this very copy of hf_clsi, installed or not
        environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [*command, *([device] if device else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._last_words: deque[bytes] = deque(maxlen=30)
        self._listener = threading.Thread(
            target=self._last_words.extend, args=(self.process.stderr,), daemon=True
        )
        self._listener.start()

    def make(self, split: str, index: int, report: Callable[[int], Any]) -> None:
        """Have one shard made. Raises what the job raised, or RuntimeError if the process died."""
        try:
            self.process.stdin.write(json.dumps([split, index]).encode() + b"\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                answer = json.loads(line)
                if "rows" in answer:
                    report(answer["rows"])
                elif "error" in answer:
                    raise _error_of(answer)
                else:
                    return
        except (BrokenPipeError, ValueError) as error:
            if not isinstance(error, BrokenPipeError) and self.process.poll() is None:
                raise
        code = self.process.wait()
        self._listener.join(timeout=1.0)
        said = b"".join(self._last_words).decode(errors="replace").strip().splitlines()
        raise RuntimeError(
            f"the process that made shard {index} of {split} ended early (exit code {code}"
            f"{'; it was killed, perhaps for memory' if code == -9 else ''}). It said: "
            f"{' | '.join(said[-5:]) or 'nothing'}. Run the same command to go on"
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        self._listener.join(timeout=1.0)
        self.process.stderr.close()


def _error_of(answer: Mapping[str, Any]) -> Exception:
    if answer.get("errno"):
        return OSError(answer["errno"], answer["error"])
    return (ValueError if answer["kind"] == "value" else RuntimeError)(answer["error"])


def _run_processes(
    folder: Path,
    missing: Sequence[tuple[str, int]],
    num_processes: int,
    num_workers: int,
    device: str | None,
    report: Callable[[int], Any],
) -> None:
    todo: Queue[tuple[str, int]] = Queue()
    for shard in missing:
        todo.put(shard)
    workers: list[ShardWorker] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        worker = ShardWorker(folder, num_workers, device)
        workers.append(worker)
        try:
            while not stop.is_set():
                worker.make(*todo.get_nowait(), report)
        except Empty:  # all shards are made, or being made by others
            pass
        except BaseException as error:
            if not stop.is_set():  # else the worker was closed on purpose
                failures.append(error)
                stop.set()
                for other in list(workers):
                    other.process.kill()
        finally:
            worker.close()

    threads = [threading.Thread(target=run) for _ in range(min(num_processes, len(missing)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C
        stop.set()
        for worker in list(workers):
            worker.process.kill()
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]
