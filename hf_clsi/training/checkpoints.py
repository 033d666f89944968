"""The state of a training run becomes a folder of safetensors and JSON that is whole or is seen not to be.

A folder `checkpoint-N` holds the run after N optimizer steps. Files are written one by one, then flushed to
the disk, and last of all `COMPLETE` is put there, which lists them with their sizes: a process that is killed
at any moment leaves either a folder that has its mark and all its files, or one that does not count and is
removed by the next start. Nothing in it is pickled.

    model.safetensors, config.json, generation_config.json    as `from_pretrained` takes them
    optimizer.safetensors, optimizer.json                     states by name of parameter; options of groups
    random.safetensors                                        generators of every process
    processes.json                                            position in the data and unlogged loss of each
    trainer_state.json, scheduler.json, ledger.json, curve.jsonl, run.json
    COMPLETE
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK = "COMPLETE"
_WEIGHTS = "model.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")
#: Options of an optimizer that say how it computes, not what: they are the new run's own.
_IMPLEMENTATION = frozenset(("params", "fused", "foreach", "capturable", "differentiable"))


# --- folders ------------------------------------------------------------------------------------------------


def step_of(folder: str | Path) -> int:
    """The number of steps in a checkpoint's name.

    >>> step_of("run/checkpoint-120")
    120
    """
    found = _NAME.fullmatch(Path(folder).name)
    if found is None:
        raise ValueError(f"{folder} is no checkpoint; expected a folder named checkpoint-N.")
    return int(found[1])


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint has its mark and every file that the mark lists, in full length."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def checkpoints(folder: str | Path) -> list[Path]:
    """All folders named checkpoint-N, complete or not, from the earliest step to the latest."""
    folder = Path(folder)
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def newest(folder: str | Path) -> Path | None:
    """The complete checkpoint of the latest step, or None."""
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    return complete[-1] if complete else None


def remove(folder: str | Path) -> None:
    """Removes a checkpoint, its mark first, so that what a kill leaves of it does not count."""
    (Path(folder) / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_incomplete(folder: str | Path) -> list[Path]:
    """Removes what a kill has left unfinished, in writing or in removing -> the folders removed."""
    removed = [path for path in checkpoints(folder) if not is_complete(path)]
    for path in removed:
        remove(path)
    return removed


def rotate(folder: str | Path, limit: int, keep: Sequence[int] = ()) -> None:
    """Removes all complete checkpoints but the last `limit` and those of the steps in `keep`.

    Raises:
        ValueError: a limit below 2. The one before the last must stay: a disk may lose the last.
    """
    if limit < 2:
        raise ValueError(f"at least the last 2 checkpoints are kept, got a limit of {limit}.")
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    for path in complete[:-limit]:
        if step_of(path) not in keep:
            remove(path)


def begin(folder: str | Path) -> Path:
    """An empty folder for a checkpoint; what was there of the name is removed."""
    folder = Path(folder)
    if folder.exists():
        remove(folder)
    folder.mkdir(parents=True)
    return folder


def finish(folder: str | Path) -> None:
    """Flushes all files of a checkpoint to the disk and puts the mark there."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)
    for path in files:
        _flush(path)
    # Files of a library in sub-folders (FSDP): their names go with the folder's entries.
    for path in {path.parent for path in files}:
        _flush(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    temporary = folder / f".{MARK}"
    temporary.write_text(json.dumps({"step": step_of(folder), "files": sizes}, indent=1) + "\n")
    _flush(temporary)
    temporary.replace(folder / MARK)
    _flush(folder)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Plain types as JSON; floats come back as they were, to the bit."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """A loss curve, an entry a line; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in curve), encoding="utf-8")
    temporary.replace(path)


def read_curve(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def differences(saved: Any, current: Any, name: str = "") -> Iterator[str]:
    """`recipe.seed is 0, not 1` for every value that differs.

    >>> list(differences({"seed": 0, "stages": [3]}, {"seed": 1, "stages": [3]}))
    ['seed is 0, not 1']
    """
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in dict.fromkeys([*saved, *current]):
            yield from differences(saved.get(key), current.get(key), f"{name}.{key}" if name else key)
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for index, (one, other) in enumerate(zip(saved, current, strict=True)):
            yield from differences(one, other, f"{name}[{index}]")
    elif saved != current:
        yield f"{name} is {json.dumps(saved)}, not {json.dumps(current)}"


# --- weights and optimizer ----------------------------------------------------------------------------------


def save_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """The weights, tied ones once, and the configs, as `from_pretrained` takes them.

    The model is not touched: `save_pretrained` would note architecture and dtype in the config of the model
    that is being trained.
    """
    weights: dict[str, torch.Tensor] = {}
    places = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in places:
            weights[name] = tensor.detach().cpu().contiguous()
        places.add(tensor.data_ptr())
    save_file(weights, Path(folder) / _WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    vars(config).pop("use_cache", None)  # the Trainer's flag on the outer config
    config.architectures = [type(model).__name__]
    config.to_json_file(Path(folder) / "config.json")  # `save_pretrained` would add the code of the model
    model.generation_config.save_pretrained(folder)


def load_weights(model: torch.nn.Module, folder: str | Path) -> None:
    """The weights from `save_weights` into a model.

    Raises:
        ValueError: weights that the model lacks, or that it has and the folder does not (tied ones apart).
    """
    path = Path(folder) / _WEIGHTS
    own, weights = model.state_dict(), load_file(path)
    there = {own[name].data_ptr() for name in weights if name in own}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in there]
    if missing or not set(weights) <= set(own):
        raise ValueError(
            f"{path} holds the weights of another model: it lacks {missing[:3]} and has "
            f"{sorted(set(weights) - set(own))[:3]} besides."
        )
    model.load_state_dict(weights, strict=False)


def save_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: str | Path) -> None:
    """`<parameter>/<state>` (exp_avg, exp_avg_sq, step) as safetensors, options of the groups as JSON."""
    folder = Path(folder)
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    groups = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in _IMPLEMENTATION}
        groups.append({"parameters": [names[parameter] for parameter in group["params"]], **options})
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{names[parameter]}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", groups)


def load_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: str | Path) -> None:
    """States and options from `save_optimizer`; how the optimizer computes (fused, foreach) stays its own.

    Raises:
        ValueError: the optimizer's groups hold other parameters.
    """
    folder = Path(folder)
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    groups = read_json(folder / "optimizer.json")
    own = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if own != [group["parameters"] for group in groups]:
        raise ValueError(
            f"{folder / 'optimizer.json'} has other groups of parameters than this run's optimizer: "
            f"{[len(group['parameters']) for group in groups]} parameters, not "
            f"{[len(each) for each in own]}, or other ones. Is it a checkpoint of another model?"
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for key, value in saved.items():
            if key != "parameters":
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    # A fused or capturable optimizer counts its steps beside the parameter, any other one on the CPU.
    beside = {
        parameter: bool(group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    optimizer.state.clear()
    for full_name, value in load_file(folder / "optimizer.safetensors").items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        moves = key != "step" or beside[parameter]
        optimizer.state[parameter][key] = value.to(parameter.device) if moves else value


# --- random generators --------------------------------------------------------------------------------------


def random_state(device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The global generators of python, numpy and torch, and that of a GPU, as tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    if version != 3 or name != "MT19937":
        raise RuntimeError(f"unknown random generators: python's version {version}, numpy's {name}.")
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_place": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device | None = None) -> None:
    """Back from `random_state`."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_place"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"].cpu())
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def save_random_states(states: Sequence[Mapping[str, torch.Tensor]], folder: str | Path) -> None:
    """`random.safetensors`: `<process>/<generator>`."""
    tensors = {f"{rank}/{key}": value for rank, state in enumerate(states) for key, value in state.items()}
    save_file(tensors, Path(folder) / "random.safetensors")


def load_random_state(folder: str | Path, process: int) -> dict[str, torch.Tensor]:
    """The generators of one process."""
    with safe_open(Path(folder) / "random.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{process}/")]  # noqa: SIM118
        return {name.split("/", 1)[1]: file.get_tensor(name) for name in names}
