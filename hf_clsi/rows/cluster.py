"""The shards of a planned build are made by datatrove: on this machine, by Slurm or by Ray.

The pipeline of one task is the four stages of one shard (rows/jobs.py), each as a datatrove step:

    ReadDrafts -> Translate -> Synthesize -> Encode -> WriteShard

A task is a missing shard, so a rerun starts tasks for these only; a task that runs twice writes the same
shard twice, each time whole. Planning and finishing take place where the build is started, but with Slurm
finishing is a job of its own, which waits for the others. All must see the folder under the same path.

datatrove is optional: pip install "hf_clsi[cluster]" (for Ray also: pip install ray). docs/cluster.md has the
commands; rows/executors.py has what is changed of datatrove's executors.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .build_folder import clear_disk_errors, lock
from .builders import BuildSettings, prepare
from .drafts import Draft
from .finishing import finish
from .jobs import ShardJob, Tools
from .launches import (
    end_launch,
    error_of,
    new_logs,
    record_failure,
    record_launch,
    refuse_while_launched,
    why_give_up,
)
from .plan import BuildPlan, BuildRecord

try:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep

    from .executors import check_executor, finish_options, make_executor
except ImportError as error:
    raise ImportError(
        'building on a cluster needs datatrove (executors for Slurm and Ray): pip install "hf_clsi[cluster]"'
    ) from error

logger = logging.getLogger(__name__)


class ShardTask:
    """What the steps of one task share: which shards there are, and the job of this task's.

    folder: of the build. shards: (split, index) by rank. logs: folder of this launch (`launches.new_logs`).
    num_workers, device: as in `builders.build`. num_threads: of torch in the task's process; None: as it is.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: Sequence[tuple[str, int]],
        logs: str | Path,
        num_workers: int = 1,
        device: str | None = None,
        num_threads: int | None = None,
    ):
        self.folder, self.logs = str(Path(folder).resolve()), str(Path(logs).resolve())
        self.shards = list(shards)
        self.num_workers, self.device, self.num_threads = num_workers, device, num_threads
        self.job: ShardJob | None = None

    def __repr__(self) -> str:  # datatrove writes it down beside the logs
        return f"{len(self.shards)} shards of {self.folder}"

    def open(self, rank: int) -> ShardJob | None:
        """The job of a rank; None if its shard is there already.

        RuntimeError: so much of this launch failed that this shard is better not begun.
        """
        self.job = None
        plan = BuildPlan.load(self.folder)
        split, index = self.shards[rank]
        if plan.is_done(self.folder, split, index):
            return None
        reason = why_give_up(
            self.logs, lambda: sum(plan.is_done(self.folder, *shard) for shard in self.shards)
        )
        if reason is not None:
            raise GivenUpError(f"not begun, since {reason}")
        if self.num_threads is not None:
            import torch

            torch.set_num_threads(self.num_threads)
        self.job = ShardJob(self.folder, split, index, tools_of(self, plan))
        return self.job

    def failed(self, rank: int, error: Exception) -> Exception:
        """Write down why the shard of a rank failed; returns what to raise instead.

        datatrove logs an exception with the values of the variables around it, in all frames: an API key
        would stand in the log. What is raised here has seen no other frame.
        """
        if isinstance(error, GivenUpError):
            return error.with_traceback(None)
        split, index = self.shards[rank]
        record_failure(self.logs, split, index, error)
        return RuntimeError(f"{split} {index}: {error}")


class GivenUpError(RuntimeError):
    """Too much failed before: no shard is begun any more."""


_tools: dict[str, Tools] = {}


def tools_of(task: ShardTask, plan: BuildPlan) -> Tools:
    """Engine, translator and tokenizer, loaded once a process and launch, however many shards it makes."""
    if task.logs not in _tools:
        close_tools()
        _tools[task.logs] = Tools(plan, task.folder, task.num_workers, task.device)
    return _tools[task.logs]


@atexit.register
def close_tools() -> None:
    """Let go of the models of an earlier launch, and end the processes of its engine."""
    while _tools:
        _tools.popitem()[1].close()


class ReadDrafts(PipelineStep):
    """The drafts of a task's shard become documents; a shard that is there gives none."""

    name, type = "drafts", "hf_clsi"

    def __init__(self, task: ShardTask):
        super().__init__()
        self.task = task

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        job = self.task.open(rank)
        if job is None:
            self.stat_update("shard_was_there")
            return
        for draft in job.read():
            self.stat_update("drafts")
            yield Document(text=_text_of(draft), id=draft.id, metadata={"draft": draft})


class Stage(PipelineStep):
    """A stage of the job: documents in, those that it kept out."""

    type = "hf_clsi"

    def __init__(self, task: ShardTask):
        super().__init__()
        self.task = task

    def stage(self) -> Callable[[Iterable[Draft]], Iterator[Draft]]:
        raise NotImplementedError

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents = iter(data)
        first = next(documents, None)
        if self.task.job is None:  # the shard was there
            return
        kept = self.stage()(_drafts(first, documents))
        for draft in kept:
            self.stat_update("kept")
            yield Document(text=_text_of(draft), id=draft.id, metadata={"draft": draft})


class Translate(Stage):
    """Stories gain the languages that they lack."""

    name = "translate"

    def stage(self):
        return self.task.job.translate


class Synthesize(Stage):
    """Every sentence gets its clip: synthesized, or read where it was recorded."""

    name = "synthesize"

    def stage(self):
        return self.task.job.speak


class Encode(Stage):
    """Every clip gets its units."""

    name = "encode"

    def stage(self):
        return self.task.job.encode


class WriteShard(PipelineStep):
    """The shard is written, whole or not at all."""

    name, type = "write", "hf_clsi"

    def __init__(self, task: ShardTask):
        super().__init__()
        self.task = task

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        failure = None
        try:  # every earlier step runs in here: a document is made when the next step asks for it
            with clear_disk_errors(Path(self.task.folder)):
                self.write(iter(data))
        except Exception as error:
            failure = self.task.failed(rank, error)
        if failure is not None:
            raise failure  # outside of the handler, so that nothing leads back to the frames of the error
        yield from ()

    def write(self, documents: Iterator[Document]) -> None:
        first = next(documents, None)
        if self.task.job is None:  # the shard was there
            return
        summary = self.task.job.write(_drafts(first, documents))
        for drop in summary.dropped:
            self.stat_update(f"dropped_{drop['reason']}")
        self.stat_update("rows", value=summary.drafts - len(summary.dropped))


class Finish(PipelineStep):
    """The card, dropped.jsonl and build.json, after all tasks of a launch have ended."""

    name, type = "finish", "hf_clsi"

    def __init__(self, task: ShardTask):
        super().__init__()
        self.task = task

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        try:
            with lock(self.task.folder):
                finish_launch(self.task)
        finally:  # whether or not shards are missing, nobody makes them now
            end_launch(self.task.folder)
        yield from ()


def shard_pipeline(task: ShardTask) -> list[PipelineStep]:
    """The steps of one task, to run by any datatrove executor with `tasks=len(task.shards)`."""
    return [ReadDrafts(task), Translate(task), Synthesize(task), Encode(task), WriteShard(task)]


def build_on_cluster(
    settings: BuildSettings,
    output_dir: str | os.PathLike,
    *,
    executor: str = "local",
    workers: int = -1,
    options: Mapping[str, Any] | None = None,
    num_workers: int = 1,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildRecord | None:
    """Plan here, make the missing shards by a datatrove executor, finish.

    With "local" and more than one worker, as with any use of Python's multiprocessing, a script must keep its
    code under `if __name__ == "__main__":`.

    Args:
        settings, output_dir, num_workers, device, overwrite: as in `builders.build`.
        executor: "local" (processes of this machine), "slurm" or "ray".
        workers: shards made at a time; -1: as many as there are cores here, or as the cluster gives.
        options: further arguments of datatrove's executor. Slurm needs `time` and `partition`; useful are
            `cpus_per_task`, `mem_per_cpu_gb`, `gpus_per_task`, `tasks_per_job`, `venv_path`, `env_command`,
            `sbatch_args`, and `finish` for other options of the last job, such as {"partition": "cpu"}.

    Returns:
        The record of the finished dataset; None with Slurm, whose jobs are only submitted here.

    Raises:
        ValueError: an unknown executor, or options that it does not know or lacks.
        RuntimeError: shards are missing after all tasks ended; jobs of an earlier launch are not over; there
            is no Slurm here, or it refused.
        ImportError: Ray is not installed.
        What `builders.build` raises.
    """
    options = dict(options or {})
    if workers != -1 and workers < 1:
        raise ValueError(f"workers must be at least 1, or -1 for as many as there can be, got {workers}")
    check_executor(executor, options)
    folder = Path(output_dir).resolve()
    with clear_disk_errors(folder), lock(folder):
        refuse_while_launched(folder)
        plan = prepare(settings, folder, device=device, overwrite=overwrite, progress=progress)
        missing = plan.missing_shards(folder)
        if not missing:
            return finish(folder)
        if executor == "local" and min(workers, len(missing)) != 1:
            num_threads = 1  # side by side, threads wait for each other
        else:
            num_threads = None if executor == "local" else int(options.get("cpus_per_task", 1))
        task = ShardTask(folder, missing, new_logs(folder), num_workers, device, num_threads)
        launched = make_executor(executor, shard_pipeline(task), len(missing), workers, task.logs, options)
        logger.info("%d shards to make, logs in %s", len(missing), task.logs)
        if executor == "slurm":
            submit(task, launched, options)
            return None
        try:
            with progress_bar(plan, task, progress):
                launched.run()
        finally:
            close_tools()
        return finish_launch(task)


def submit(task: ShardTask, launched: Any, options: Mapping[str, Any]) -> None:
    """Submit the jobs of a Slurm executor, and one that finishes when they have ended."""
    last = None
    try:
        launched.run()
        after = finish_options(options, launched.job_ids)
        last = make_executor("slurm", [Finish(task)], 1, 1, Path(task.logs) / "finish", after)
        last.run()
    finally:  # some may be submitted even if others were refused
        jobs = launched.job_ids + (last.job_ids if last else [])
        if jobs:
            record_launch(task.folder, jobs, task.logs)
    logger.info("submitted: jobs %s for shards, job %s to finish", " ".join(launched.job_ids), last.job_id)


def finish_launch(task: ShardTask) -> BuildRecord:
    """Finish the dataset of a launch whose tasks have ended.

    RuntimeError, OSError: shards are missing; the message says why.
    """
    missing = BuildPlan.load(task.folder).missing_shards(task.folder)
    if missing:
        raise error_of(task.logs, missing, len(task.shards))
    return finish(task.folder)


@contextmanager
def progress_bar(plan: BuildPlan, task: ShardTask, progress: bool) -> Iterator[None]:
    """Count the shards that appear, wherever they are made."""
    ended = threading.Event()
    total = sum(plan.shards.values())
    with tqdm(
        total=total,
        initial=total - len(task.shards),
        desc=plan.dataset,
        unit=" shards",
        disable=not progress,
    ) as bar:

        def watch() -> None:
            left = list(task.shards)
            while left:
                over = ended.wait(1.0)
                still = [shard for shard in left if not plan.is_done(task.folder, *shard)]
                bar.update(len(left) - len(still))
                left = still
                if over:
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        if progress:
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if progress:
                watcher.join()


def _drafts(first: Document | None, rest: Iterator[Document]) -> Iterator[Draft]:
    if first is not None:
        yield first.metadata["draft"]
        for document in rest:
            yield document.metadata["draft"]


def _text_of(draft: Draft) -> str:
    """What datatrove counts the length of."""
    return " ".join(text for side in draft.sides.values() for text in side.texts)
