"""`hf-clsi encode` from the command line to the dataset, on sounds made here and on real recordings."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_clsi.cli.main import main
from hf_clsi.rows.shards import read_rows
from hf_clsi.speech.audio import read_audio
from hf_clsi.units.encode import encode_waveforms, load_audio_tokenizer

PROMPTS = Path(__file__).parents[3] / "shared/data/parallel_prompts_en_fr"


def tone(path, seconds, pitch_hz, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(pitch_hz).standard_normal(len(time))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch_hz * time * (1 + 0.3 * time)) + 0.02 * noise, rate)


@pytest.fixture
def corpus(tmp_path):
    """Four sentences in two languages, paired by name; the German of the last is no audio."""
    for i in range(4):
        tone(tmp_path / f"corpus/en/s{i}.wav", 0.6 + 0.1 * i, 200 + 90 * i)
        tone(tmp_path / f"corpus/de/s{i}.flac", 0.5 + 0.2 * i, 250 + 70 * i, rate=22050)
    (tmp_path / "corpus/de/s3.flac").write_text("no audio")
    return tmp_path / "corpus"


def test_encode_writes_a_dataset_and_says_so(corpus, tmp_path, capsys):
    from datasets import load_dataset

    out = tmp_path / "out"
    line = f"encode {corpus} --output-dir {out} --languages en,de --split train --num-units 5 --no-progress"
    assert main(line.split()) == 0
    captured = capsys.readouterr()
    assert "fitting the embedded audio tokenizer (5 units) on this input" in captured.err
    digest = load_audio_tokenizer(str(out / "audio_tokenizer")).codebook_digest()
    # 0.6, 0.7 and 0.8 s are 8, 9 and 10 frames of 80 ms; 0.5, 0.7 and 0.9 s are 7, 9 and 12.
    assert captured.out.splitlines() == [
        f"{out}: split 'train', 3 rows in 1 shard",
        "  en: 3 clips, 2.1 s, 27 units",
        "  de: 3 clips, 2.1 s, 28 units",
        f"audio tokenizer: hf_clsi embedded, sha256 {digest}, "
        "fitted on this input (7 of 8 clips, en, de, seed 0); 5 units, 12.5 a second",
        f"refused: 1 row (not_audio 1), listed in {out}/refused.jsonl",
        f'load it: datasets.load_dataset("{out}", split="train")',
    ]
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["story_id"][:] == ["s0", "s1", "s2"]
    assert [len(units[0]) for units in rows["units_de"]] == [7, 9, 12]


def test_options_reach_the_encoding(corpus, tmp_path):
    out = tmp_path / "out"
    line = (
        f"encode {corpus} --output-dir {out} --languages de --num-units 4 --frame-rate 50 "
        "--duration-penalty 2 --seed 5 --keep-audio --max-rows-per-shard 2 --batch-seconds 1 --no-progress"
    )
    assert main(line.split()) == 0
    settings = load_audio_tokenizer(str(out / "audio_tokenizer")).config
    assert (settings.num_units, settings.frame_rate, settings.duration_penalty) == (4, 50.0, 2.0)
    record = json.loads((out / "encoding.json").read_text())["test"]
    assert record["tokenizer_origin"].endswith("seed 5)") and record["num_shards"] == 2
    rows = list(read_rows(out, "test"))
    assert [row["audio_de"][0]["path"] for row in rows] == ["s0.flac", "s1.flac", "s2.flac"]
    assert "units_en" not in rows[0]


def test_a_bad_file_stops_it_when_told(corpus, tmp_path, capsys):
    line = f"encode {corpus} --output-dir {tmp_path / 'out'} --on-error refuse --num-units 4 --no-progress"
    assert main(line.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: recording 's3' is refused (not_audio): ")
    assert str(corpus / "de/s3.flac") in error


def test_an_existing_split_is_not_touched_without_overwrite(corpus, tmp_path, capsys):
    line = f"encode {corpus} --output-dir {tmp_path / 'out'} --num-units 4 --no-progress".split()
    assert main(line) == 0
    shard = tmp_path / "out/data/test-00000-of-00001.parquet"
    written = shard.stat().st_mtime_ns
    assert main(line) == 1
    assert "holds the split 'test' already" in capsys.readouterr().err
    assert shard.stat().st_mtime_ns == written
    assert main([*line, "--overwrite"]) == 0
    assert shard.stat().st_mtime_ns > written


def test_a_list_of_recordings_of_one_language(corpus, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("corpus/en/s0.wav\ncorpus/en/s2.wav\n")
    line = (
        f"encode {tmp_path / 'list.txt'} --output-dir {tmp_path / 'out'} --num-units 4 --no-progress".split()
    )
    assert main(line) == 1
    assert "must be named (--languages en)" in capsys.readouterr().err
    assert main([*line, "--languages", "en"]) == 0
    assert [row["story_id"] for row in read_rows(tmp_path / "out", "test")] == [
        "corpus/en/s0",
        "corpus/en/s2",
    ]


@pytest.mark.skipif(not PROMPTS.is_dir(), reason=f"the recordings of {PROMPTS} are not here")
def test_real_recordings(tmp_path):
    with (PROMPTS / "metadata.jsonl").open(encoding="utf-8") as lines:
        entries = [json.loads(next(lines)) for _ in range(6)]
    for language in ("en", "fr"):
        for entry in entries:
            key = f"audio_{language}"
            entry[key] = os.path.relpath(PROMPTS / entry[key], tmp_path)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out = tmp_path / "out"
    line = f"encode {tmp_path / 'metadata.jsonl'} --output-dir {out} --num-units 16 --no-progress"
    assert main(line.split()) == 0
    tokenizer = load_audio_tokenizer(str(out / "audio_tokenizer"))
    rows = list(read_rows(out, "test"))
    assert len(rows) == 6
    for row, entry in zip(rows, entries, strict=True):
        assert row["story_id"] == entry["id"]
        for language in ("en", "fr"):
            assert row[f"text_{language}"] == [entry[f"text_{language}"]]
            assert row[f"seconds_{language}"] == pytest.approx(entry[f"duration_{language}"], abs=2e-3)
            waveform, _ = read_audio(tmp_path / entry[f"audio_{language}"], 16000)
            alone = encode_waveforms([waveform], tokenizer, progress=False)[0]
            assert np.array_equal(row[f"units_{language}"][0], alone)
    used = {unit for row in rows for units in row["units_en"] + row["units_fr"] for unit in units.tolist()}
    assert len(used) >= 12
