"""Twenty steps of the tiny model, loss by loss, as recorded in trajectory.json with the environment.

Plan, language draw, collator, model, optimizer and schedule are all in it, over both stages of `interleave`:
nothing of how a model is trained changes unnoticed. A change that is meant is recorded, its reason committed:

    python tests/training/test_trajectory.py --record

In the recorded environment a loss may differ by 1e-5 of its value. Elsewhere sums are taken in another order,
and every step enlarges what the step before left: 1e-3 is allowed. Measured: when every weight is changed by
1e-6 of its value before the first step, losses change by up to 5e-6; by up to 3e-4 when it is 1e-5.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from hf_clsi.experiment.presets import preset
from hf_clsi.training.recipes import recipe
from hf_clsi.training.run import RecipeRun, TrainingStories, new_model
from hf_clsi.units.merges import UnitMerges

RECORDED = Path(__file__).with_name("trajectory.json")
NUM_STEPS = 20
SAME_ENVIRONMENT, ANOTHER_ENVIRONMENT = 1e-5, 1e-3  # relative
BUDGET_TOKENS = 18_700  # 85 of 100 parts are read: 20 steps of about 800 tokens


def made_up_units(num_stories: int = 150, sentences: int = 5) -> dict[str, list[list[np.ndarray]]]:
    """Raw units with runs, English below 32 and French above; formulas, so that no generator is in it."""

    def sentence(story: int, index: int, first: int) -> np.ndarray:
        steps = np.arange(5 + (5 * story + 3 * index + first // 32) % 7)
        units = first + (7 * story + 11 * index + (1 + story % 3) * steps) % 32
        return np.repeat(units, 1 + (steps + story) % 3).astype(np.uint16)

    return {
        code: [[sentence(story, index, first) for index in range(sentences)] for story in range(num_stories)]
        for code, first in (("en", 0), ("fr", 32))
    }


def trajectory(folder: str | Path) -> list[dict]:
    """What the run logs, one entry a step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = preset("tiny").training.with_(budget_tokens=BUDGET_TOKENS)
        plan = recipe("interleave", settings, seed=0)
        units = made_up_units()
        merges = UnitMerges.learn(
            [sentence for stories in units.values() for story in stories for sentence in story],
            num_units=64,
            num_merges=60,
            deduplicate=True,
            show_progress=False,
        )
        stories = TrainingStories(
            ids=[f"story-{index}" for index in range(len(units["en"]))],
            tokens={code: [merges.encode(story) for story in units[code]] for code in units},
            units=units,
        )
        model = new_model(plan, merges, frame_rate_hz=12.5, sampling_rate_hz=16_000)
        curve = RecipeRun(plan, stories, merges, model, 12.5, folder, logging_steps=1).run().curve
        return [
            {name: entry[name] for name in ("stage", "tokens", "learning_rate", "loss")} for entry in curve
        ]
    finally:
        torch.set_num_threads(before)


def environment() -> dict[str, str | int]:
    """What the last bits of a loss depend on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
    }


def cpu_name() -> str:
    """As Linux names it; elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def tolerance(recorded: dict, here: dict) -> float:
    """Python's version and the chip's name are recorded for the reader; the sums do not depend on them."""
    decisive = ("torch", "transformers", "numpy", "tokenizers", "system", "vector_instructions", "threads")
    same = all(recorded[name] == here[name] for name in decisive)
    return SAME_ENVIRONMENT if same else ANOTHER_ENVIRONMENT


def first_difference(recorded: list[dict], found: list[dict], allowed: float) -> str | None:
    """What is wrong with the first step that differs, or None."""
    if len(found) != len(recorded):
        return f"{len(found)} steps, but {len(recorded)} are recorded"
    for step, (old, new) in enumerate(zip(recorded, found, strict=True), start=1):
        for name in ("stage", "tokens"):
            if new[name] != old[name]:
                return f"step {step}: {name} is {new[name]!r}, recorded is {old[name]!r}"
        for name, bound in (("learning_rate", 1e-9), ("loss", allowed)):
            difference = abs(new[name] - old[name]) / abs(old[name])
            if not difference <= bound:  # NaN differs, too
                return (
                    f"step {step}: {name} is {new[name]!r}, recorded is {old[name]!r}: "
                    f"{difference:.1e} of it, allowed is {bound:.0e}"
                )
    return None


def test_twenty_steps_have_the_recorded_losses(tmp_path):
    recorded, here = json.loads(RECORDED.read_text(encoding="utf-8")), environment()
    assert len(recorded["steps"]) == NUM_STEPS
    assert [step["stage"] for step in recorded["steps"]] == ["en"] * 15 + ["interleaved"] * 5
    allowed = tolerance(recorded["environment"], here)
    difference = first_difference(recorded["steps"], trajectory(tmp_path), allowed)
    assert difference is None, (
        f"{difference}\nrecorded in {recorded['environment']}\nthis is {here}\n"
        "If the change is meant: python tests/training/test_trajectory.py --record"
    )


def test_the_first_step_that_differs_is_named():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["steps"]
    assert first_difference(recorded, recorded, 0.0) is None

    def changed(step, **values):
        return [entry | (values if number >= step else {}) for number, entry in enumerate(recorded, start=1)]

    loss = recorded[16]["loss"]
    assert first_difference(recorded, changed(17, loss=loss * (1 + 9e-6)), 1e-5).startswith(
        "step 18: loss is"
    )
    assert first_difference(recorded, changed(17, loss=loss * (1 + 2e-5)), 1e-5) == (
        f"step 17: loss is {loss * (1 + 2e-5)!r}, recorded is {loss!r}: 2.0e-05 of it, allowed is 1e-05"
    )
    assert first_difference(recorded, changed(3, loss=float("nan")), 1e-3).startswith("step 3: loss is nan")
    assert first_difference(recorded, changed(2, tokens=1), 1e-3).startswith("step 2: tokens is 1, recorded")
    assert first_difference(recorded, recorded[:-1], 1e-3) == "19 steps, but 20 are recorded"


def test_only_another_environment_is_allowed_more():
    here = environment()
    assert tolerance(here, here) == tolerance({**here, "cpu": "another"}, here) == 1e-5
    assert tolerance({**here, "torch": "2.10.0"}, here) == 1e-3
    assert tolerance({**here, "vector_instructions": "NEON"}, here) == 1e-3


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = trajectory(folder)
    if len(steps) != NUM_STEPS:
        raise RuntimeError(f"got {len(steps)} steps, expected {NUM_STEPS}; change BUDGET_TOKENS")
    before = json.loads(RECORDED.read_text(encoding="utf-8"))["steps"] if RECORDED.is_file() else steps
    print(f"before: {first_difference(before, steps, 0.0) or 'the same'}")
    rows = ",\n  ".join(json.dumps(step) for step in steps)
    head = json.dumps(environment(), indent=2).replace("\n", "\n ")
    text = f'{{\n "environment": {head},\n "steps": [\n  {rows}\n ]\n}}\n'
    RECORDED.write_text(text, encoding="utf-8")
    print(f"recorded: {RECORDED}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write trajectory.json anew")
    if not parser.parse_args().record:
        parser.error("nothing to do: the tests are run by pytest; --record writes trajectory.json anew")
    record()
