"""The folder of a build: who may write in it, what belongs to it, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..units.tokenizers import TOKENIZER_FOLDER
from .plan import BUILD_FOLDER, BuildPlan, plan_path
from .shards import PARTIAL


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold the folder's lock. RuntimeError: another build holds it. A killed build holds it no longer."""
    path = Path(folder) / BUILD_FOLDER / "lock"
    if Path(folder).exists() and not Path(folder).is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the dataset")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(
                f"another build is at work in {folder} ({file.read().strip() or 'unknown process'}); wait "
                "for it, or name another folder"
            ) from None
        except OSError as error:
            raise RuntimeError(
                f"{path.parent} lies on a file system that cannot lock files ({error.strerror}); build into "
                "a folder on another one, or have its administrator turn on locks"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if plan_path(folder).is_file():
        return
    foreign = sorted(
        path.name for path in folder.iterdir() if path.name not in (BUILD_FOLDER, TOKENIZER_FOLDER)
    )
    if foreign:
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign[:3])}, which no build left there; name a new folder"
        )


def remove_leftovers(folder: Path) -> None:
    """Remove the halves of files that a killed build left."""
    for path in [*folder.glob(f"*/.*{PARTIAL}"), *folder.glob(f".*{PARTIAL}")]:
        if path.is_file():
            path.unlink(missing_ok=True)


def remove_build(folder: Path) -> None:
    """Remove everything that a build wrote, and nothing else."""
    if plan_path(folder).is_file():
        for config in BuildPlan.load(folder).columns():
            shutil.rmtree(folder / config, ignore_errors=True)
    for name in ("README.md", "build.json", "dropped.jsonl", "validation.json", "validation.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    for path in (folder / BUILD_FOLDER).iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """A full disk or an unwritable folder, said in words."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; make room",
            errno.EDQUOT: "the disk quota is used up; make room",
            errno.EFBIG: "a file grew larger than this system allows; use fewer rows a shard",
            errno.EACCES: "this folder cannot be written; change its permissions or name another",
            errno.EPERM: "this folder cannot be written; change its permissions or name another",
            errno.EROFS: "this file system is read-only; name another folder",
        }
        if error.errno not in reasons:
            raise
        raise OSError(
            error.errno,
            f"{reasons[error.errno]}, then run the same command again ({error.strerror or error}). "
            "Finished shards are kept",
            str(folder),
        ) from error
