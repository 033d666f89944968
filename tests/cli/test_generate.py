"""hf-clsi generate: WAV files of continuations, joined with their prompts, and a line on each."""

import json

import numpy as np
import pytest
import soundfile

from hf_clsi.cli.main import main

RATE = 16_000


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_slm):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_slm(max_position_embeddings=2048)
    model.generation_config.suppress_tokens = [30, 31, 32]  # never ends by itself
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    for number, name in enumerate(("one.flac", "other/one.wav", "two.wav")):
        (folder / name).parent.mkdir(exist_ok=True)
        samples = np.random.default_rng(number).normal(size=8000 + 160 * number) * 0.1
        soundfile.write(folder / name, samples, RATE)
    return folder


def generate(*arguments):
    return main(["generate", *map(str, arguments), "--no-progress"])


def records(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_continuation_and_joined_are_written(model, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        generate(model, prompts / "one.flac", prompts / "two.wav", "--output-dir", out, "--seconds", 0.5) == 0
    )
    assert {path.name for path in out.iterdir()} == {
        "one.continuation.wav",
        "one.joined.wav",
        "two.continuation.wav",
        "two.joined.wav",
        "generations.jsonl",
    }
    first, second = records(out)
    assert first["prompt"] == "one.flac"
    assert first["files"] == ["one.continuation.wav", "one.joined.wav"]
    assert (first["prompt_seconds"], first["seconds"], len(first["units"])) == (0.5, 0.5, 25)
    assert second["prompt_seconds"] == 0.52
    assert f"{out / 'two.joined.wav'}: 0.5 s + 0.5 s" in capsys.readouterr().out
    prompt, _ = soundfile.read(prompts / "one.flac")
    continuation, rate = soundfile.read(out / "one.continuation.wav")
    joined, _ = soundfile.read(out / "one.joined.wav")
    assert rate == RATE
    assert len(continuation) == 8000
    np.testing.assert_allclose(joined, np.concatenate([prompt, continuation]), atol=2e-4)  # 16-bit files


def test_the_seed_decides(model, prompts, tmp_path):
    units = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        settings = ("--output-dir", tmp_path / name, "--seed", seed, "--seconds", 0.4, "--no-joined")
        assert generate(model, prompts / "one.flac", *settings) == 0
        (record,) = records(tmp_path / name)
        assert record["files"] == ["one.continuation.wav"]
        units[name] = record["units"]
    assert units["a"] == units["b"] != units["c"]


def test_several_continuations_have_numbers(model, prompts, tmp_path):
    settings = ("--output-dir", tmp_path, "--continuations", 2, "--seconds", 0.2, "--temperature", 1.5)
    assert generate(model, prompts / "one.flac", *settings) == 0
    assert [record["files"] for record in records(tmp_path)] == [
        ["one.1.continuation.wav", "one.1.joined.wav"],
        ["one.2.continuation.wav", "one.2.joined.wav"],
    ]


def test_inputs_of_one_name_do_not_overwrite_each_other(model, prompts, tmp_path):
    inputs = (prompts / "one.flac", prompts / "other" / "one.wav")
    assert generate(model, *inputs, "--output-dir", tmp_path, "--greedy", "--seconds", 0.2) == 0
    assert [record["files"][0] for record in records(tmp_path)] == [
        "one.continuation.wav",
        "one-2.continuation.wav",
    ]
    assert records(tmp_path)[0]["seed"] is None


def test_a_bad_input_is_named_and_the_others_go_on(model, prompts, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    (tmp_path / "cut.wav").write_bytes((prompts / "two.wav").read_bytes()[:5000])
    inputs = (tmp_path / "bad.wav", prompts / "two.wav", tmp_path / "missing.wav", tmp_path / "cut.wav")
    assert generate(model, *inputs, "--output-dir", tmp_path / "out", "--seconds", 0.2) == 1
    assert [record["prompt"] for record in records(tmp_path / "out")] == ["two.wav"]
    error = capsys.readouterr().err
    assert "3 of 4 inputs were refused" in error
    for name in ("bad.wav", "missing.wav", "cut.wav"):
        assert f"refused: {tmp_path / name}: " in error


def test_files_that_are_there_are_kept(model, prompts, tmp_path, capsys):
    settings = (model, prompts / "one.flac", "--output-dir", tmp_path, "--seconds", 0.2)
    assert generate(*settings) == 0
    before = (tmp_path / "one.joined.wav").read_bytes()
    assert generate(*settings, "--seed", 9) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "one.joined.wav").read_bytes() == before
    assert generate(*settings, "--seed", 9, "--overwrite") == 0
    assert (tmp_path / "one.joined.wav").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seconds", "0"), "--seconds must be positive"),
        (("--continuations", "0"), "--continuations at least 1"),
        (("--greedy", "--continuations", "2"), "would be the same without drawing"),
        (("--num-beams", "2", "--continuations", "3"), "no more continuations than beams"),
        (("--seconds", "1000"), "leaves room for"),
    ],
)
def test_what_cannot_be_done_is_refused(model, prompts, tmp_path, capsys, options, message):
    assert generate(model, prompts / "one.flac", "--output-dir", tmp_path, *options) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.wav")) == []


def test_beams_give_as_many_continuations_as_asked_for(model, prompts, tmp_path):
    settings = ("--num-beams", 2, "--continuations", 2, "--seconds", 0.2)
    assert generate(model, prompts / "one.flac", "--output-dir", tmp_path, *settings) == 0
    assert len(records(tmp_path)) == 2


def test_a_missing_model_is_one_line(prompts, tmp_path, capsys):
    assert generate(tmp_path / "nothing", prompts / "one.flac", "--output-dir", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out" / "generations.jsonl").exists()
