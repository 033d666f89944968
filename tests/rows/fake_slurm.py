"""A Slurm of one machine for tests: sbatch, srun, scontrol and squeue as commands, and a node that runs jobs.

The environment variable FAKE_SLURM names its folder. sbatch keeps a job with its environment (as
`--export=ALL` does) and answers at once, as the real one. Nothing runs before `FakeSlurm.run`, which takes
the jobs in order, task by task, and honours dependencies.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

DIRECTIVES = {
    "account", "array", "cpus-per-task", "error", "gpus", "job-name", "mem-per-cpu", "nodes", "output",
    "partition", "qos", "requeue", "time",
}  # fmt: skip
PARTITIONS = {"cpu", "gpu"}


_CALL = """import runpy, sys
sys.exit(runpy.run_path({file!r})[{name!r}](sys.argv[1:]))
"""


class FakeSlurm:
    """What a test sees of it. folder: a new one; its `bin` is to be put on PATH."""

    def __init__(self, folder):
        self.folder, self.bin = Path(folder), Path(folder) / "bin"
        self.bin.mkdir(parents=True)
        for name in ("sbatch", "srun", "scontrol", "squeue"):
            command = self.bin / name
            command.write_text(f"#!{sys.executable} -S\n{_CALL.format(file=__file__, name=name)}")
            command.chmod(command.stat().st_mode | stat.S_IXUSR)

    def jobs(self):
        """Jobs by id: {"script", "directives", "dependency", "environment", "state", "codes"}."""
        return jobs_of(self.folder)

    def run(self):
        """Run the queued jobs that may start, in order; returns id -> exit codes of its tasks."""
        for number, job in self.jobs().items():
            if job["state"] != "PENDING" or not _may_start(job["dependency"], self.jobs()):
                continue
            tasks = re.fullmatch(r"(\d+)-(\d+)(?:%\d+)?", job["directives"]["array"])
            codes = [self._run_task(number, job, task) for task in range(int(tasks[1]), int(tasks[2]) + 1)]
            state = "FAILED" if any(codes) else "COMPLETED"
            save_job(self.folder, number, job | {"state": state, "codes": codes})
        return {number: job["codes"] for number, job in self.jobs().items()}

    def cancel(self, number):
        save_job(self.folder, number, self.jobs()[number] | {"state": "CANCELLED"})

    def _run_task(self, number, job, task):
        environment = job["environment"] | {
            "SLURM_JOB_ID": f"{number}{task}",
            "SLURM_ARRAY_JOB_ID": number,
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_NODELIST": "node-[7]",
        }
        script = self.folder / f"script-{number}-{task}"
        script.write_text(job["script"])
        output = job["directives"]["output"].replace("%A", number).replace("%a", str(task))
        with open(output, "w") as file:
            return subprocess.call(["bash", script], env=environment, cwd="/", stdout=file, stderr=file)


def jobs_of(folder):
    files = sorted(Path(folder).glob("job-*.json"))
    return {file.stem.removeprefix("job-"): json.loads(file.read_text()) for file in files}


def save_job(folder, number, job):
    (Path(folder) / f"job-{number}.json").write_text(json.dumps(job))


def _may_start(dependency, jobs):
    for condition in filter(None, dependency.split(",")):
        kind, *numbers = condition.split(":")
        for number in numbers:
            state = jobs[number]["state"]
            if state == "PENDING" or (kind == "afterok" and state != "COMPLETED"):
                return False
    return True


# ---- The commands


def sbatch(arguments):
    folder = os.environ["FAKE_SLURM"]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[:-1])
    script = Path(arguments[-1]).read_text()
    lines = re.findall(r"^#SBATCH --([^=\n]+)(?:=(.*))?$", script, re.MULTILINE)
    directives = dict(lines)
    unknown = directives.keys() - DIRECTIVES
    if unknown or set(options) - {"export", "dependency"}:
        print(f"sbatch: unrecognized option {unknown} {options}", file=sys.stderr)
        return 1
    if directives["partition"] not in PARTITIONS:
        print(f"sbatch: error: invalid partition specified: {directives['partition']}", file=sys.stderr)
        return 1
    everything, *more = options["export"].split(",")
    assert everything == "ALL"
    environment = dict(os.environ) | dict(each.split("=", 1) for each in more)
    number = str(101 + len(jobs_of(folder)))
    job = {
        "script": script,
        "directives": directives,
        "dependency": options.get("dependency", ""),
        "environment": environment,
        "state": "PENDING",
        "codes": None,
    }
    save_job(folder, number, job)
    print(f"Submitted batch job {number}")
    return 0


def srun(arguments):
    while arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option == "-n":
            assert arguments.pop(0) == "1"
        else:
            assert option == "-l" or option.startswith("--cpus-per-task="), option
    return subprocess.call(arguments)


def scontrol(arguments):
    assert arguments == ["show", "hostnames", "node-[7]"]
    print("node-7")
    return 0


def squeue(arguments):
    (wanted,) = (each.removeprefix("--jobs=") for each in arguments if each.startswith("--jobs="))
    jobs = jobs_of(os.environ["FAKE_SLURM"])
    queued = [number for number in wanted.split(",") if jobs.get(number, {}).get("state") == "PENDING"]
    if not queued:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    print("\n".join(f"{number}_[0] PENDING" for number in queued))
    return 0
