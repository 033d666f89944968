"""datatrove's executors as builds need them: local processes, Slurm, Ray; what goes wrong costs one shard.

| | datatrove's | here |
|---|---|---|
| local, Slurm | a shard that fails ends its process, and the shards after it are not made | the others are |
| local | a process that is killed leaves the build waiting for ever | its shard is missing, nothing else |
| Slurm | a second job merges statistics, and waits for ever if a shard failed | none: shards have summaries |
| Slurm | asks for the quality of service "normal" | only if it is an option |
| Ray | a task over its time ends the command with a KeyError | with what is missing |
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

logger = logging.getLogger(__name__)


class GoesOn:
    """A shard that fails does not take along those that its process would make next."""

    num_failed = 0

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        pipeline = self.pipeline
        self.pipeline = deepcopy(pipeline)  # statistics and state of one task
        try:
            return super()._run_for_rank(rank, local_rank, node_rank=node_rank)
        except Exception:  # in the log of the task by now
            self.num_failed += 1
            return PipelineStats()
        finally:
            self.pipeline = pipeline


class LocalShards(GoesOn, LocalPipelineExecutor):
    """Tasks in processes of this machine, or one after another in this one (workers=1)."""

    def run(self) -> None:
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            _run_ranks(self, ranks)
            return
        context = multiprocessing.get_context("spawn")
        taken = context.Value("q", 0)
        processes = [
            context.Process(target=_run_ranks, args=(self, ranks, taken))
            for _ in range(min(self.workers, len(ranks)))
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:  # they have ended, unless this was interrupted
                if process.is_alive():
                    process.kill()


def _run_ranks(executor: LocalShards, ranks: Sequence[int], taken: Any = None) -> None:
    """Run the next task that no other process took, until there is none."""
    if taken is None:
        for rank in ranks:
            executor._run_for_rank(rank, local_rank=1)  # 0 would print every line of the log
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(ranks):
            return
        executor._run_for_rank(ranks[number], local_rank=1)


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class SlurmShards(GoesOn, SlurmPipelineExecutor):
    """Tasks of array jobs. job_ids: all that were submitted; datatrove remembers the last."""

    def __init__(self, *arguments: Any, **options: Any):
        self.job_ids: list[str] = []
        super().__init__(*arguments, **options)

    @property
    def job_id(self) -> str | None:
        return self.job_ids[-1] if self.job_ids else None

    @job_id.setter
    def job_id(self, value: str | int | None) -> None:
        if value not in (None, -1):
            self.job_ids.append(str(value))

    def run(self) -> None:
        """Submit the jobs; inside a job, run its tasks. RuntimeError: sbatch refused, or a task failed."""
        try:
            super().run()
        except subprocess.CalledProcessError as error:
            script = self.logging_dir.resolve_paths("launch_script.slurm")
            raise RuntimeError(
                f"sbatch did not take the job (exit code {error.returncode}); what it said stands above, the "
                f"script is {script}"
            ) from None
        if self.num_failed:  # seen by Slurm as the state of the job
            raise RuntimeError(f"{self.num_failed} tasks of this job failed; see the log above")

    def launch_merge_stats(self) -> None:
        """Nothing: it would be a job that waits for ever once a task has failed."""


class RayShards(RayPipelineExecutor):
    """Tasks of a Ray cluster: that of RAY_ADDRESS, else one that is started on this machine."""

    def run(self) -> None:
        try:
            super().run()
        except KeyError as error:
            # datatrove 0.10 ends a task that is over its `time`, and then fails to find it. The other tasks
            # are ended as well; which shards are missing is told by the caller.
            if type(error.args[0]).__name__ != "ObjectRef":
                raise
            logger.warning("a task of Ray's was ended after %s s, and the launch with it", self.time)


EXECUTORS: dict[str, type[PipelineExecutor]] = {"local": LocalShards, "slurm": SlurmShards, "ray": RayShards}
#: Arguments of datatrove's Slurm executor that every launch needs and no default can know.
SLURM_REQUIRED = ("time", "partition")
#: What a launch decides itself.
_OURS = {"self", "pipeline", "tasks", "workers", "logging_dir", "depends", "skip_completed", "job_name"}
_OURS |= {"start_method", "local_tasks", "local_rank_offset", "run_on_dependency_fail", "job_id_retriever"}


def check_executor(name: str, options: Mapping[str, Any]) -> None:
    """Refuse, before anything is planned, what cannot be launched here with these options.

    Raises:
        ValueError: an unknown executor; an option that it does not know, or lacks.
        RuntimeError: no Slurm on this machine, or this is a task of Slurm's itself.
        ImportError: no Ray here.
    """
    if name not in EXECUTORS:
        raise ValueError(f"unknown executor {name!r}; use one of {', '.join(EXECUTORS)}")
    known = option_names(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"the executor {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    for option in ("sbatch_args", "srun_args", "finish", "ray_remote_kwargs"):
        if not isinstance(options.get(option, {}), Mapping):
            raise ValueError(
                f'{option} is a JSON object, for example {option}=\'{{"account": "speech"}}\', got '
                f"{options[option]!r}"
            )
    if name == "slurm":
        absent = [option for option in SLURM_REQUIRED if option not in options]
        if absent:
            raise ValueError(
                f"Slurm needs {' and '.join(absent)}: --executor-option time=04:00:00 --executor-option "
                "partition=NAME"
            )
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            raise RuntimeError(
                "this is a task of a Slurm array, which datatrove would take for one of its own; launch from "
                "a login node, or from a job without an array"
            )
        if shutil.which("sbatch") is None:
            raise RuntimeError("there is no sbatch on this machine; launch from a login node of the cluster")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise ImportError("the executor ray needs Ray on every machine of the cluster: pip install ray")


def option_names(name: str) -> set[str]:
    """What may be given to an executor: datatrove's own arguments but for those that a launch decides."""
    executor = SlurmPipelineExecutor if name == "slurm" else EXECUTORS[name]
    names = set(inspect.signature(executor.__init__).parameters) - _OURS
    return names | {"finish"} if name == "slurm" else names


def make_executor(
    name: str,
    pipeline: list[PipelineStep],
    tasks: int,
    workers: int,
    logging_dir: str | Path,
    options: Mapping[str, Any],
) -> PipelineExecutor:
    """An executor of this name, ready to run; its options as `check_executor` let them pass.

    workers: tasks at a time; -1: as many as there are cores here, or as the cluster gives.
    """
    options = {key: value for key, value in options.items() if key != "finish"}
    if name == "local" and workers == -1:
        workers = len(os.sched_getaffinity(0))
    if name == "slurm":
        options = _for_slurm(options)
    if workers != -1:
        options["workers"] = min(workers, tasks)
    return EXECUTORS[name](pipeline=pipeline, tasks=tasks, logging_dir=str(logging_dir), **options)


def _for_slurm(options: dict[str, Any]) -> dict[str, Any]:
    """Options with defaults under which a job finds this very environment."""
    options = {"job_name": "hf-clsi", "qos": "", **options}
    venv = options.get("venv_path")
    if venv and Path(venv).is_dir():  # datatrove wants the script that activates it
        options["venv_path"] = str(Path(venv) / "bin" / "activate")
    if not any(options.get(key) for key in ("env_command", "condaenv", "venv_path")):
        scripts, package = Path(sys.executable).parent, Path(__file__).parents[2]  # this very copy of hf_clsi
        options["env_command"] = (
            f"export PATH={shlex.quote(str(scripts))}:$PATH "
            f"PYTHONPATH={shlex.quote(str(package))}${{PYTHONPATH:+:$PYTHONPATH}}"
        )
    # srun no longer takes the number of cores over from sbatch (since Slurm 22.05).
    cores = {"cpus-per-task": options.get("cpus_per_task", 1)}
    options["srun_args"] = cores | dict(options.get("srun_args") or {})
    return options


def finish_options(options: Mapping[str, Any], job_ids: Sequence[str]) -> dict[str, Any]:
    """Options of the Slurm job that finishes, once these jobs have ended, well or not."""
    left_out = ("gpus_per_task", "tasks_per_job", "max_array_size", "max_array_launch_parallel")
    shared = {key: value for key, value in options.items() if key not in left_out}
    # Several jobs behind one "afterany:" are waited for one and all.
    after = {"depends_job_id": ":".join(job_ids), "run_on_dependency_fail": True}
    return shared | dict(options.get("finish", {})) | after
