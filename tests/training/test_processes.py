"""Two processes on CPUs, started by torchrun: what they feed, what comes out, and how it is resumed."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

from hf_clsi.training import checkpoints
from hf_clsi.training.recipes import recipe

PROGRAM = Path(__file__).with_name("small_runs.py")
_spec = importlib.util.spec_from_file_location("small_runs", PROGRAM)
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

CASES = {
    "global": recipe("interleave-ft", small.preset()),
    "forwards": recipe("interleave-ft", small.preset(rows_per_forward=1)),
    "shards": small.sharded(recipe("interleave-ft", small.preset())),
}


def torchrun(folder, number, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    done = subprocess.run(
        [*command, str(PROGRAM), *arguments[:1], str(folder), *arguments[1:]],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def reports_of(folder, number):
    torchrun(folder, number, "processes")
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(number)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The reports of both processes."""
    return reports_of(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Case -> (what it fed, its result) of a single process."""
    done = {}
    for name, plan in CASES.items():
        run = small.start(tmp_path_factory.mktemp(name), plan, logging_steps=1)
        fed = small.record_documents(run.model)
        done[name] = (fed, run.run())
    return done


def test_there_are_two_processes_which_agree_on_everything(two):
    assert [(report["rank"], report["world"]) for report in two] == [(0, 2), (1, 2)]
    for name in ("whole", "found"):
        assert two[0][name] == two[1][name]


@pytest.mark.parametrize("name", CASES)
def test_together_they_feed_what_one_process_feeds_and_nothing_twice(two, one, name):
    fed = [Counter(tuple(document) for document in chain(*report["fed"][name])) for report in two]
    alone = Counter(chain(*one[name][0]))
    assert fed[0] + fed[1] == alone
    assert min(sum(fed[0].values()), sum(fed[1].values())) > 0.3 * sum(alone.values())
    if name != "forwards":  # one forward a step: shares of the same step can be compared
        for mine, others, both in zip(two[0]["fed"][name], two[1]["fed"][name], one[name][0], strict=True):
            assert Counter(map(tuple, mine + others)) == Counter(both)


@pytest.mark.parametrize("name", CASES)
def test_ledger_losses_and_weights_are_those_of_one_process(two, one, name):
    found, (_, alone) = two[0]["found"][name], one[name]
    assert found["ledger"] == alone.ledger
    assert len(found["curve"]) == len(alone.curve) == alone.ledger["total"]["steps"]
    for mine, expected in zip(found["curve"], alone.curve, strict=True):
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            if key.startswith("loss") or key == "grad_norm":
                assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
            else:
                assert mine[key] == value, key
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(torch.tensor(found["values"][key]), value, rtol=1e-3, atol=1e-4)


def test_a_run_of_two_processes_is_resumed_to_the_same_bits(two):
    assert [report["resumed"] for report in two] == [[True, True], [True, True]]
    assert len(two[0]["whole"]["curve"]) > 5


def test_losses_by_language_are_sums_over_processes_in_the_plain_loop(two, tmp_path):
    """Of the first step: later batches of a plain loader are dealt out in another order."""
    alone = small.plain_training(tmp_path)
    assert len(two[0]["logs"]) == len(alone)
    mine, expected = two[0]["logs"][0], alone[0]
    keys = {"loss_en", "loss_fr", "tokens_en", "tokens_fr", "units_en", "units_fr", "switched_share"}
    assert keys < mine.keys()
    for report in two:
        assert {key: report["logs"][0][key] for key in keys} == {key: mine[key] for key in keys}
    assert {key: mine[key] for key in keys} == pytest.approx({key: expected[key] for key in keys}, rel=1e-5)
    assert mine["tokens_en"] + mine["tokens_fr"] < two[0]["logs"][-1]["tokens_en"]
    for key in ("tokens_en", "tokens_fr"):  # after all epochs everything was read, by whomever
        assert two[0]["logs"][-1][key] == alone[-1][key]


def test_a_checkpoint_holds_the_state_of_both_processes_and_the_curve_is_written_once(two):
    folder = Path(two[0]["folder"])
    newest = checkpoints.newest(folder / "whole")
    positions = [process["position"] for process in checkpoints.read_json(newest / "processes.json")]
    assert positions == [{"step": checkpoints.step_of(newest)}] * 2
    first, second = (checkpoints.load_random_state(newest, rank) for rank in (0, 1))
    assert first.keys() == second.keys() >= {"torch", "numpy", "python"}
    lanes = checkpoints.newest(folder / "shards") / "processes.json"
    assert [list(process["position"]["lanes"]) for process in checkpoints.read_json(lanes)] == [["0"], ["1"]]
    lines = (folder / "whole" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == two[0]["whole"]["curve"]


@pytest.mark.slow
def test_three_processes_are_resumed_to_the_same_bits(tmp_path):
    """From three on, the order of a sum over processes matters."""
    options = {"budget_tokens": 900, "save_steps": 1}
    torchrun(tmp_path / "whole", 3, "run", json.dumps(options))
    mine = tmp_path / "mine"
    broken = options | {"kill_in": ["save_optimizer", 4]}
    with pytest.raises(AssertionError, match=r"(?i)sigkill"):
        torchrun(mine, 3, "run", json.dumps(broken))
    assert checkpoints.step_of(checkpoints.newest(mine)) == 3
    torchrun(mine, 3, "run", json.dumps(options))
    results = [json.loads((folder / "outcome.json").read_text()) for folder in (mine, tmp_path / "whole")]
    assert results[0] == results[1]
