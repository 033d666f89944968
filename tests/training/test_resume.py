"""Runs that are broken off at every possible moment and started again end as if nothing had happened."""

import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_clsi.training import checkpoints
from hf_clsi.training.recipes import OptimizerSettings, recipe

PROGRAM = Path(__file__).with_name("small_runs.py")
_spec = importlib.util.spec_from_file_location("small_runs", PROGRAM)
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

PLANS = {
    "global": recipe("interleave-ft", small.preset(dropout=0.1)),
    "run schedule": recipe(
        "interleave",
        small.preset(dropout=0.1).with_(
            optimizer=OptimizerSettings(learning_rate=1e-2, warmup_share=0.4, schedule="run")
        ),
    ),
    "shards": small.sharded(recipe("interleave-ft", small.preset(dropout=0.1))),
    "forwards": recipe("interleave-ft", small.preset(dropout=0.1, rows_per_forward=1)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name of a plan -> (what its undisturbed run gave, its folder with a checkpoint of every step)."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("whole")
            run = small.start(folder, PLANS[name], save_steps=1, save_total_limit=None)
            done[name] = (small.outcome(run), folder)
        return done[name]

    return get


class _Killed(BaseException):
    pass


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Every Trainer collects garbage when it starts, which would take longer than these runs."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", PLANS)
def test_a_run_goes_on_from_every_step_to_the_same_bits(whole, tmp_path, name):
    expected, folder = whole(name)
    steps = [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)]
    assert steps == list(range(1, expected["ledger"]["total"]["steps"] + 1))
    assert len(expected["ledger"]["stages"]) == len(PLANS[name].stages)
    for step in steps:
        mine = tmp_path / str(step)
        shutil.copytree(folder / f"checkpoint-{step}", mine / f"checkpoint-{step}")
        assert small.outcome(small.start(mine, PLANS[name])) == expected, step
        assert (mine / "curve.jsonl").read_bytes() == (folder / "curve.jsonl").read_bytes()
        for other in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
            last = f"checkpoint-{steps[-1]}/{other}"
            assert (mine / last).read_bytes() == (folder / last).read_bytes(), (step, other)


def test_saving_more_or_less_often_changes_nothing(whole, tmp_path):
    expected, _ = whole("global")
    assert small.outcome(small.start(tmp_path, PLANS["global"])) == expected


def test_dropout_is_drawn_from_what_the_checkpoint_brings_back(whole, tmp_path):
    """Otherwise the tests above would not notice a lost generator."""
    expected, folder = whole("global")
    shutil.copytree(folder / "checkpoint-3", tmp_path / "checkpoint-3")
    path = tmp_path / "checkpoint-3"
    random_file = path / "random.safetensors"
    torch.manual_seed(4711)
    checkpoints.save_random_states([checkpoints.random_state()], path)
    assert random_file.read_bytes() != (folder / "checkpoint-3" / "random.safetensors").read_bytes()
    assert small.outcome(small.start(tmp_path, PLANS["global"]))["weights"] != expected["weights"]


@pytest.mark.parametrize("broken_off", [1, 5, 8])
def test_a_run_broken_off_between_two_checkpoints_repeats_what_it_had_done_since(whole, tmp_path, broken_off):
    """Checkpoints after every second step, and entries of the curve after every one."""
    plan = PLANS["global"]
    expected = small.outcome(small.start(tmp_path / "whole", plan, save_steps=2, logging_steps=1))

    def die(entry):
        if entry["global_step"] == broken_off:
            raise _Killed

    with pytest.raises(_Killed):
        small.start(tmp_path / "mine", plan, save_steps=2, logging_steps=1, report=die).run()
    reported = []
    run = small.start(tmp_path / "mine", plan, save_steps=2, logging_steps=1, report=reported.append)
    assert small.outcome(run) == expected
    assert reported[0]["global_step"] <= broken_off
    lines = (tmp_path / "mine" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected["curve"]


@pytest.mark.parametrize(
    ("function", "at"),
    [
        ("begin", "after"),
        ("save_weights", "before"),
        ("save_weights", "after"),
        ("save_optimizer", "before"),
        ("save_random_states", "before"),
        ("write_curve", "before"),
        ("finish", "before"),
        ("_flush", "before"),
        ("finish", "after"),
        ("remove", "before"),
        ("rotate", "after"),
    ],
)
@pytest.mark.parametrize("step", [5])  # the end of a stage
def test_a_run_killed_while_it_saves_goes_on(whole, tmp_path, monkeypatch, function, at, step):
    expected, _ = whole("global")
    original = getattr(checkpoints, function)

    def deadly(*args, **kwargs):
        on_time = (tmp_path / f"checkpoint-{step}").exists()
        if on_time and at == "before":
            raise _Killed
        result = original(*args, **kwargs)
        if (tmp_path / f"checkpoint-{step}").exists():
            raise _Killed
        return result

    monkeypatch.setattr(checkpoints, function, deadly)
    with pytest.raises(_Killed):
        small.start(tmp_path, PLANS["global"], save_steps=1).run()
    monkeypatch.undo()
    left = checkpoints.newest(tmp_path)
    survived = (function, at) in (("finish", "after"), ("remove", "before"), ("rotate", "after"))
    assert checkpoints.step_of(left) == (step if survived else step - 1)
    assert small.outcome(small.start(tmp_path, PLANS["global"], save_steps=1)) == expected
    assert all(checkpoints.is_complete(path) for path in checkpoints.checkpoints(tmp_path))


@pytest.mark.parametrize("damage", ["mark", "cut", "lost"])
def test_a_damaged_checkpoint_does_not_count(whole, tmp_path, damage):
    expected, folder = whole("global")
    for step in (4, 5):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    path = tmp_path / "checkpoint-5"
    if damage == "mark":
        (path / "COMPLETE").unlink()
    elif damage == "cut":
        content = (path / "optimizer.safetensors").read_bytes()
        (path / "optimizer.safetensors").write_bytes(content[:-1])
    else:
        (path / "processes.json").unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-4"
    assert small.outcome(small.start(tmp_path, PLANS["global"])) == expected
    assert not path.exists()  # the run had no reason to save after step 5 again


def test_a_finished_run_is_read_again_without_training(whole, tmp_path):
    expected, folder = whole("global")
    last = checkpoints.newest(folder)
    shutil.copytree(last, tmp_path / last.name)
    run = small.start(tmp_path, PLANS["global"])
    fed = small.record_documents(run.model)
    assert small.outcome(run) == expected
    assert fed == []
    assert not run.model.training


def test_only_the_last_two_checkpoints_stay(tmp_path):
    run = small.start(tmp_path, PLANS["global"], save_steps=1)
    run.run()
    total = sum(run.feed.num_steps)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [
        f"checkpoint-{total - 1}",
        f"checkpoint-{total}",
    ]
    assert sorted(path.name for path in checkpoints.newest(tmp_path).iterdir()) == [
        "COMPLETE", "config.json", "curve.jsonl", "generation_config.json", "ledger.json",
        "model.safetensors", "optimizer.json", "optimizer.safetensors", "processes.json",
        "random.safetensors", "run.json", "scheduler.json", "trainer_state.json",
    ]  # fmt: skip


def test_the_ends_of_stages_stay_if_asked_for(tmp_path):
    run = small.start(tmp_path, PLANS["global"], save_steps=1, keep_stages=True)
    run.run()
    assert all(checkpoints.is_complete(run.stage_checkpoint(index)) for index in range(3))
    assert len(checkpoints.checkpoints(tmp_path)) == 4


def test_beginning_anew_removes_what_is_there(whole, tmp_path):
    expected, folder = whole("global")
    shutil.copytree(folder / "checkpoint-5", tmp_path / "checkpoint-5")
    run = small.start(tmp_path, PLANS["global"], resume=False)
    fed = small.record_documents(run.model)
    assert small.outcome(run) == expected
    assert len(fed) == expected["ledger"]["total"]["steps"]
    assert not (tmp_path / "checkpoint-5").exists() or checkpoints.is_complete(tmp_path / "checkpoint-5")


def _other_stories():
    data = small.stories()
    data.units["fr"][3][1] = data.units["fr"][3][1][:1]
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": replace(PLANS["global"], seed=1)}, "recipe.seed is 0, not 1"),
        (
            {"plan": replace(PLANS["global"], optimizer=OptimizerSettings(learning_rate=2e-2))},
            "recipe.optimizer.learning_rate is 0.01, not 0.02",
        ),
        ({"data": small.stories(count=30)}, "data.stories is 24, not 30"),
        ({"data": _other_stories()}, 'data.digest is "[0-9a-f]+", not "[0-9a-f]+"'),
        ({"plan": small.sharded(PLANS["global"])}, 'recipe.data.order is "global", not "shards"'),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(whole, tmp_path, change, message):
    _, folder = whole("global")
    shutil.copytree(folder / "checkpoint-3", tmp_path / "checkpoint-3")
    run = small.start(tmp_path, **({"plan": PLANS["global"]} | change))
    before = small.digest(run.model)
    with pytest.raises(ValueError, match=f"checkpoint of another run: .*{message}"):
        run.run()
    assert checkpoints.is_complete(tmp_path / "checkpoint-3")
    assert small.digest(run.model) == before


def test_another_number_of_processes_is_refused(whole, tmp_path):
    _, folder = whole("global")
    path = tmp_path / "checkpoint-3"
    shutil.copytree(folder / "checkpoint-3", path)
    record = checkpoints.read_json(path / "run.json")
    assert record["processes"] == 1
    checkpoints.write_json(path / "run.json", record | {"processes": 4})
    checkpoints.finish(path)
    with pytest.raises(ValueError, match=r"processes is 4, not 1.* or begin anew"):
        small.start(tmp_path, PLANS["global"]).run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_steps": 0}, "save_steps must be at least 1"),
        ({"save_total_limit": 1}, "save_total_limit must be at least 2"),
    ],
)
def test_settings_of_saving_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        small.start(tmp_path, **settings)


def test_data_that_do_not_go_with_the_order_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"permutes all stories .* only reads them in sequence"):
        small.start(tmp_path, PLANS["global"], data=small.Shards())
    with pytest.raises(ValueError, match=r"reads shards .* got TrainingStories"):
        small.start(tmp_path, PLANS["shards"], data=small.stories())


# --- real kills ---------------------------------------------------------------------------------------------


def _environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}


def _program(folder, options, *launcher):
    command = [sys.executable, *launcher, str(PROGRAM), "run", str(folder), json.dumps(options)]
    return subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL in the midst of writing three different files, then at six random moments."""
    options = {"budget_tokens": 6000, "save_steps": 1}
    _finish(_program(tmp_path / "whole", options))
    mine = tmp_path / "mine"
    for name, step in (("save_weights", 2), ("save_optimizer", 9), ("save_random_states", 23)):
        killed = _program(mine, options | {"kill_in": [name, step]})
        assert killed.wait(timeout=300) == -signal.SIGKILL
        killed.stderr.close()
        assert checkpoints.step_of(checkpoints.newest(mine)) == step - 1
        assert not checkpoints.is_complete(mine / f"checkpoint-{step}")
    moments = random.Random(0)
    kills = 0
    for _ in range(6):
        before = checkpoints.step_of(checkpoints.newest(mine))
        process = _program(mine, options)
        while process.poll() is None and checkpoints.step_of(checkpoints.newest(mine)) <= before:
            time.sleep(0.002)  # until it trains
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.stderr.close()
    assert kills >= 4
    _finish(_program(mine, options))
    results = [json.loads((folder / "outcome.json").read_text()) for folder in (mine, tmp_path / "whole")]
    found, expected = results
    assert found == expected
    assert (mine / "curve.jsonl").read_bytes() == (tmp_path / "whole" / "curve.jsonl").read_bytes()
    assert len(expected["curve"]) > 20 and np.isfinite([entry["loss"] for entry in expected["curve"]]).all()
