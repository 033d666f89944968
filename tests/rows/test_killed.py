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

STORIES, SENTENCES, SHARD, PROCESSES, KILLS = 2_000, 3, 50, 2, 10
ROOT = Path(__file__).parents[2]


def command(source, folder, log):
    return [
        sys.executable, "-m", "hf_clsi.cli.main", "build", "tinystories-en-fr", "--source", str(source),
        "--output-dir", str(folder), "--engine", "tone_engine:ToneEngine", "--engine-option", f"log={log}",
        "--engine-option", "delay_s=0.01", "--rows-per-shard", str(SHARD), "--num-processes", str(PROCESSES),
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
    subprocess.run(command(source, whole, whole_log), check=True, cwd=ROOT)

    folder, log = tmp_path / "out", tmp_path / "out.log"
    rng, at_work = random.Random(0), 0
    for kill in range(KILLS):
        before, position = finished_texts(folder), len(texts_of(log))
        process = subprocess.Popen(command(source, folder, log), cwd=ROOT, start_new_session=True)
        # Twice while Python starts, plans or fits the tokenizer; else while shards are being spoken.
        if kill >= 2:
            deadline = time.monotonic() + 120
            while len(texts_of(log)) == position and time.monotonic() < deadline:
                time.sleep(0.02)
        time.sleep(rng.uniform(0.1, 3.0))
        assert process.poll() is None, f"the build ended before kill {kill}"
        if kill % 2:
            os.killpg(process.pid, signal.SIGKILL)  # everything at once, as when a machine goes down
        else:
            process.kill()  # the parent alone; its children must notice
        process.wait()
        time.sleep(1.5)
        settled = len(texts_of(log))
        time.sleep(1.0)
        assert len(texts_of(log)) == settled, "a worker outlived its parent"
        again = [text for text in texts_of(log)[position:] if text in before]
        assert again == [], f"{len(again)} sentences of finished shards were spoken again before kill {kill}"
        at_work += settled > position
    before, position = finished_texts(folder), len(texts_of(log))
    subprocess.run(command(source, folder, log), check=True, cwd=ROOT)
    assert not {*texts_of(log)[position:]} & before
    spoken, needed = len(texts_of(log)), len(texts_of(whole_log))
    print(
        f"{KILLS} kills, {at_work} of them while speaking; {spoken} sentences spoken, {needed} if undisturbed"
    )

    assert at_work >= 8 and spoken > needed  # or the kills came too early to prove anything
    assert fingerprint(folder) == fingerprint(whole)
    assert sum(1 for split in ("train", "validation") for _ in read_rows(folder, split, "units")) == STORIES
    assert not list(folder.rglob("*.partial"))
    # In flight at a kill: a shard a process, or the sample that the tokenizer is fitted on.
    assert spoken <= needed + KILLS * max(PROCESSES * SHARD * SENTENCES * 2, 2 * SHARD * SENTENCES)
