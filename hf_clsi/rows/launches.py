"""What is known of a launch of shards on a cluster: where its logs lie, what failed, whether it still runs.

    .build/logs/2026-01-31_12-00-00/             of one launch; datatrove's own files, and
        failures/train-00012.json                one for every shard that could not be made
    .build/launch.json                           while jobs of a Slurm launch are queued or running

Nothing of a finished shard is kept here: that it is there says it all.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .plan import BUILD_FOLDER, write_json

#: A launch gives up when as many shards failed and fewer were made: what ails them is hardly the shards.
MAX_FAILURES = 3
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


# ---- Logs and failures of one launch


def new_logs(folder: str | Path) -> Path:
    """A folder for the logs of a new launch, which no other launch has."""
    base = Path(folder) / BUILD_FOLDER / "logs" / time.strftime("%Y-%m-%d_%H-%M-%S")
    base.parent.mkdir(parents=True, exist_ok=True)
    number, logs = 1, base
    while True:
        try:
            logs.mkdir()
            return logs
        except FileExistsError:
            number += 1
            logs = base.with_name(f"{base.name}_{number}")


def record_failure(logs: str | Path, split: str, index: int, error: BaseException) -> None:
    """Write down why a shard could not be made, for the rest of the launch and for its user."""
    content = {
        "split": split,
        "index": index,
        "error": str(error) or type(error).__name__,
        "errno": getattr(error, "errno", None),
        "host": os.uname().nodename,
        # Lines of code, but no values of variables: they may be secrets.
        "traceback": "".join(traceback.format_exception(error)),
    }
    with suppress(OSError):  # the disk may be what is full
        write_json(Path(logs) / "failures" / f"{split}-{index:05d}.json", content)


def failures_of(logs: str | Path) -> list[dict[str, Any]]:
    """What `record_failure` wrote, by name of the shard."""
    files = sorted((Path(logs) / "failures").glob("[!.]*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def why_give_up(logs: str | Path, count_made: Callable[[], int]) -> str | None:
    """What speaks against beginning one more shard, if anything.

    count_made: how many shards this launch has made. Looking is slow, so it is asked only after failures.
    """
    failures = failures_of(logs)
    for failure in failures:
        if failure["errno"] in _DISK_IS_FULL:
            return f"another shard failed with: {failure['error']}"
    if len(failures) >= MAX_FAILURES and len(failures) > (made := count_made()):
        return f"{len(failures)} shards failed and {made} were made; the first: {_said(failures[0])}"
    return None


def error_of(logs: str | Path, missing: Sequence[tuple[str, int]], num_shards: int) -> Exception:
    """What to tell the user of a launch that ended without some of its shards."""
    failures = failures_of(logs)
    if failures:
        reason = f"{len(failures)} failed, the first being {_said(failures[0])}"
    else:
        reason = "their tasks ended without a word: killed, perhaps for memory or time"
    message = (
        f"{len(missing)} of {num_shards} shards are missing; {reason}. The others are kept; the same command "
        f"makes those that are missing. Logs: {logs}"
    )
    for failure in failures:
        if failure["errno"] in _DISK_IS_FULL:
            return OSError(failure["errno"], message)
    return RuntimeError(message)


def _said(failure: dict[str, Any]) -> str:
    shard = f"{failure['split']} {failure['index']}"
    return f"{shard} on {failure['host']}: {failure['error'].strip().rstrip('.')}"


# ---- Slurm jobs that outlive the command that submitted them


def launch_path(folder: str | Path) -> Path:
    return Path(folder) / BUILD_FOLDER / "launch.json"


def record_launch(folder: str | Path, jobs: Sequence[str], logs: str | Path) -> None:
    """Write down which Slurm jobs make shards of this folder."""
    content = {
        "jobs": list(jobs),
        "logs": str(logs),
        "host": os.uname().nodename,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(launch_path(folder), content)


def end_launch(folder: str | Path) -> None:
    launch_path(folder).unlink(missing_ok=True)


def refuse_while_launched(folder: str | Path) -> None:
    """RuntimeError: Slurm jobs of an earlier launch are still to make shards here, or nobody can tell."""
    path = launch_path(folder)
    if not path.is_file():
        return
    launch = json.loads(path.read_text(encoding="utf-8"))
    jobs = ",".join(launch["jobs"])
    about = f"Slurm jobs {jobs} were submitted for {folder} on {launch['host']} at {launch['time']}"
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%i %T", f"--jobs={jobs}"], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise RuntimeError(
            f"{about}, and this machine has no squeue to ask whether they have ended; if so, remove {path}"
        ) from None
    left = [line for line in asked.stdout.splitlines() if line.strip()]
    if left:
        raise RuntimeError(
            f"{about}; {len(left)} of their tasks are queued or running, such as {left[0].strip()}. Wait for "
            f"them, or end them (scancel {' '.join(launch['jobs'])}), and run the same command again"
        )
    # Jobs that Slurm has forgotten have ended.
    if asked.returncode != 0 and "invalid job id" not in asked.stderr.lower():
        raise RuntimeError(
            f"{about}, and squeue cannot tell whether they have ended ({asked.stderr.strip()}); if so, "
            f"remove {path}"
        )
    end_launch(folder)
