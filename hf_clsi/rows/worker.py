"""Makes shards of a planned build, one after another; run as a child process by `running.ShardWorker`.

`python -m hf_clsi.rows.worker FOLDER NUM_WORKERS [DEVICE]` reads one JSON line a shard, `[split, index]`, and
answers with any number of lines `{"rows": n}` (rows made since the last) and one last line: `{"done": true}`
or `{"error": message, "kind": "value" | "runtime", "errno": number or null}`. When standard input ends, the
parent is gone, and the process leaves at once, whatever it is doing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from queue import Queue


def main(folder: str, num_workers: str = "1", device: str | None = None) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    # A private copy of standard output: what a library prints cannot break into the protocol.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    shards: Queue[tuple[str, int]] = Queue()

    def listen() -> None:
        for line in sys.stdin:
            shards.put(tuple(json.loads(line)))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def say(**answer) -> None:
        output.write(json.dumps(answer) + "\n")
        output.flush()

    import torch

    from .jobs import ShardJob, Tools
    from .plan import BuildPlan

    torch.set_num_threads(1)
    tools = Tools(BuildPlan.load(folder), folder, int(num_workers), device)
    while True:
        split, index = shards.get()
        try:
            ShardJob(folder, split, index, tools, lambda rows: say(rows=rows)).run()
        except (ValueError, RuntimeError, OSError) as error:
            kind = "value" if isinstance(error, ValueError) else "runtime"
            say(error=str(error), kind=kind, errno=getattr(error, "errno", None))
        else:
            say(done=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
