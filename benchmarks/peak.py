"""Does one step of a dataset's life in this process and prints, as JSON, how much memory it took.

    python benchmarks/peak.py STEP FOLDER

Steps: `build` (settings in FOLDER.settings.json), and three ways to read the split train, one row at a time:
`read_rows` (hf_clsi), `load_dataset` and `streaming` (the library datasets, without hf_clsi). `import-STEP`
stops at what the step imports; of a build, at the audio tokenizer. benchmarks/build.py starts it; Linux
only.

`peak` is the most that the process held at once (VmHWM) in MiB, `own` the part of it that is no page of a
file (RssAnon, looked at every 20 ms), `engine` the same of its child processes. Not getrusage, since a
child's ru_maxrss begins with what its parent held when the child was started.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


class Peak:
    """The most memory that this process and its children held while the block ran."""

    def __enter__(self) -> Peak:
        self._own = self._engine = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._look()

    def _look(self) -> None:
        self._own = max(self._own, memory("self", "RssAnon"))
        self._engine = max(self._engine, sum(memory(pid, "RssAnon") for pid in children(os.getpid())))

    def figures(self) -> dict[str, float]:
        return {"peak": memory("self", "VmHWM"), "own": self._own, "engine": self._engine}


def memory(pid: int | str, name: str) -> float:
    """A line of /proc/PID/status in MiB; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """Child processes that are alive, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


def build_dataset(folder: str) -> dict[str, Any]:
    """Build -> figures of what was built."""
    from hf_clsi.rows.builders import BuildSettings, build

    settings = json.loads(Path(f"{folder}.settings.json").read_text())
    record = build(BuildSettings(**settings), folder, progress=False)
    return {"rows": record.splits["units"]["train"]["rows"], "units": sum(record.units.values())}


def reader_of(step: str) -> Callable[[str], Iterator[dict[str, Any]]]:
    """How the rows of a folder are read; imports what that takes."""
    if step == "read_rows":
        import pyarrow.parquet  # noqa: F401

        from hf_clsi.rows.shards import read_rows

        return lambda folder: read_rows(folder, "train", "units")
    from datasets import load_dataset

    return lambda folder: iter(load_dataset(folder, "units", split="train", streaming=step == "streaming"))


def main(step: str, folder: str) -> None:
    started = time.perf_counter()
    result: dict[str, Any] = {}
    with Peak() as peak:
        if step == "build":
            result = build_dataset(folder)
        elif step == "import-build":
            import hf_clsi.rows.builders  # noqa: F401
            from hf_clsi.units.encode import load_audio_tokenizer

            load_audio_tokenizer(folder)
        elif step.startswith("import-"):
            reader_of(step.removeprefix("import-"))
        else:
            result["rows"] = sum(1 for _ in reader_of(step)(folder))
    print(json.dumps({**peak.figures(), **result, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
