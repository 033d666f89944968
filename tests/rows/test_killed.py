"""A build of 2,000 stories that is killed ten times ends like one that is left alone (pytest -m slow)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_clsi.rows.plan import BuildPlan, plan_path
from hf_clsi.rows.shards import read_rows

STORIES, SENTENCES, SHARD, PROCESSES = 2_000, 3, 50, 2
ROOT = Path(__file__).parents[2]


def command(source, folder, log):
    return [
        sys.executable, "-m", "hf_clsi.cli.main", "build", "tinystories-en-fr", "--source", str(source),
        "--output-dir", str(folder), "--engine", "tone_engine:ToneEngine", "--engine-option", f"log={log}",
        "--engine-option", "delay_s=0.002", "--rows-per-shard", str(SHARD), "--num-processes", str(PROCESSES),
        "--num-units", "16", "--no-progress", "--debug",
    ]  # fmt: skip


def texts_of(log):
    return (
        [line.split("\t")[2] for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    )


def finished_texts(folder):
    """Sentences of the shards that are there."""
    if not plan_path(folder).exists():
        return set()
    import pyarrow.parquet as pq

    plan = BuildPlan.load(folder)
    told = set()
    for shard in plan.all_shards():
        if plan.is_done(folder, *shard):
            for row in pq.read_table(plan.paths(folder, *shard)["units"]).to_pylist():
                told |= {*row["text_en"], *row["text_fr"]}
    return told


@pytest.mark.slow
def test_killed_ten_times(tones, tmp_path, fingerprint):
    source = tmp_path / "stories.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for story in range(STORIES):  # every sentence is told once in the whole dataset
            told = {
                f"text_{code}": [f"{code} {story} {i} ." for i in range(SENTENCES)] for code in ("en", "fr")
            }
            file.write(json.dumps({"story_id": f"s{story}", **told}) + "\n")

    whole, whole_log = tmp_path / "whole", tmp_path / "whole.log"
    started = time.monotonic()
    subprocess.run(command(source, whole, whole_log), check=True, cwd=ROOT)
    duration_s = time.monotonic() - started

    folder, log = tmp_path / "out", tmp_path / "out.log"
    rng, kills, spoken_again = random.Random(0), 0, 0
    while kills < 10:
        before = finished_texts(folder)
        position = len(texts_of(log))
        process = subprocess.Popen(command(source, folder, log), cwd=ROOT, start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.8) * duration_s / 2)
        except subprocess.TimeoutExpired:
            if kills % 2:
                os.killpg(process.pid, signal.SIGKILL)  # everything at once, as when a machine goes down
            else:
                process.kill()  # the parent alone; its children must notice
            process.wait()
            kills += 1
        else:
            break
        again = [text for text in texts_of(log)[position:] if text in before]
        spoken_again += len(again)
        assert again == [], f"{len(again)} sentences of finished shards were spoken again after kill {kills}"
        time.sleep(1.5)  # orphans would go on writing
        settled = len(texts_of(log))
        time.sleep(1.0)
        assert len(texts_of(log)) == settled, "a worker outlived its parent"
    before, position = finished_texts(folder), len(texts_of(log))
    subprocess.run(command(source, folder, log), check=True, cwd=ROOT)
    assert not {*texts_of(log)[position:]} & before
    print(f"{kills} kills; {len(texts_of(log))} sentences spoken, {len(texts_of(whole_log))} if undisturbed")

    assert fingerprint(folder) == fingerprint(whole)
    assert sum(1 for split in ("train", "validation") for _ in read_rows(folder, split, "units")) == STORIES
    assert not list(folder.rglob("*.partial"))
    # In flight at a kill: a shard a process, and the sample that the tokenizer is fitted on.
    in_flight = PROCESSES * SHARD * SENTENCES * 2
    assert len(texts_of(log)) <= len(texts_of(whole_log)) + kills * in_flight + 2 * 1_000 * kills
