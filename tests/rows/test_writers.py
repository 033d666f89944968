"""Rows -> folders of peers, and scores -> submissions: everything written is read back and compared."""

import io
import os

import numpy as np
import pytest
import soundfile
import yaml

from hf_clsi.rows.readers import (
    find_reader,
    read_recording,
    read_slamkit_cloze,
    read_spoken_storycloze,
    zerospeech_names,
)
from hf_clsi.rows.writers import (
    write_slamkit_folder,
    write_zerospeech_meta,
    write_zerospeech_submission,
)
from hf_clsi.speech.audio import encode_audio, read_audio, write_audio
from hf_clsi.text.drops import Drops


def tone(hz, rate=16000, seconds=0.05):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def flac(hz, rate=16000):
    return {"bytes": encode_audio(tone(hz, rate), rate, "FLAC"), "path": f"{hz}.flac"}


def cloze_row(item_id, hz, rate=16000):
    return {
        "id": item_id,
        "speaker": "a",
        "prompt_language": "en",
        "ending_language": "fr",
        "prompt_text": f"Prompt {item_id}.",
        "correct_text": "Oui.",
        "negative_text": "Été.",
        "prompt_audio": flac(hz, rate),
        "correct_audio": flac(hz + 10, rate),
        "negative_audio": flac(hz + 20, rate),
        "prompt_units": [[1]],
        "correct_units": [2],
        "negative_units": [3],
    }


def pair_row(item_id, hz, rate=16000):
    row = cloze_row(item_id, hz, rate)
    return {name: value for name, value in row.items() if not name.startswith("prompt")}


def samples(content):
    waveform, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    return waveform.tolist(), rate


def test_cloze_rows_are_read_back_from_slamkits_files(tmp_path):
    rows = [cloze_row("s1", 200), cloze_row("en/2 a", 300)]
    counts = write_slamkit_folder(rows, tmp_path / "out")

    assert counts == {"items": 2, "files": 6, "written": 6}
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        f"{base}_{label}.{suffix}"
        for base in ("s1", "en%2F2 a")
        for label in ("mutual", "correct", "incorrect")
        for suffix in ("wav", "txt")
    )
    assert find_reader(tmp_path / "out") == "slamkit-cloze"
    drops = Drops()
    drafts = {draft.id: draft for draft in read_slamkit_cloze(tmp_path / "out", drops)}
    assert drops == []
    assert set(drafts) == {"s1", "en/2 a"}
    for row in rows:
        for side in ("prompt", "correct", "negative"):
            found = drafts[row["id"]].sides[f"{side}_en"]
            assert found.texts == [row[f"{side}_text"]]
            # The 16-bit samples of the FLAC, unchanged.
            assert samples(read_recording(found.recordings[0])) == samples(row[f"{side}_audio"]["bytes"])


def test_pair_rows_are_read_back_from_spoken_storycloze_files(tmp_path):
    rows = [pair_row(f"p{i}", 200 + 30 * i) for i in range(6)]
    counts = write_slamkit_folder(iter(rows), tmp_path)

    assert counts == {"items": 6, "files": 12, "written": 12}
    assert {"0_p0_correct.wav", "1_p0_incorrect.wav", "10_p5_correct.wav", "11_p5_incorrect.wav"} <= set(
        os.listdir(tmp_path)
    )
    assert find_reader(tmp_path) == "spoken-storycloze"
    drops = Drops()
    drafts = list(read_spoken_storycloze(tmp_path, drops))
    assert drops == []
    assert [draft.id for draft in drafts] == [row["id"] for row in rows]
    for row, draft in zip(rows, drafts, strict=True):
        for side in ("correct", "negative"):
            found = draft.sides[side]
            assert found.texts == [row[f"{side}_text"]]
            assert samples(read_recording(found.recordings[0])) == samples(row[f"{side}_audio"]["bytes"])


def test_the_peers_own_way_of_reading_finds_the_pairs(tmp_path):
    """slamkit sorts *.wav by the number before the first "_" and takes two at a time."""
    write_slamkit_folder([pair_row(f"x_{i}", 200 + 30 * i) for i in range(6)], tmp_path)
    names = sorted((each.name for each in tmp_path.glob("*.wav")), key=lambda name: int(name.split("_")[0]))
    assert [name.partition("_")[2] for name in names] == [
        f"x_{i}_{label}.wav" for i in range(6) for label in ("correct", "incorrect")
    ]


def test_files_have_the_rate_that_slamkit_takes_them_for(tmp_path):
    rows = [pair_row("a", 200, rate=24000)]
    write_slamkit_folder(rows, tmp_path / "default")
    waveform, rate = read_audio(tmp_path / "default" / "0_a_correct.wav")
    assert (rate, len(waveform)) == (16000, 800)
    assert soundfile.info(tmp_path / "default" / "0_a_correct.wav").subtype == "PCM_16"
    assert np.abs(waveform[100:-100] - tone(210)[100:-100]).max() < 0.01  # the same tone, not a slower one

    write_slamkit_folder(rows, tmp_path / "own", sampling_rate_hz=None)
    found = samples((tmp_path / "own" / "0_a_correct.wav").read_bytes())
    assert found == samples(rows[0]["correct_audio"]["bytes"])
    assert found[1] == 24000


def test_a_second_call_writes_what_is_missing_or_differs(tmp_path):
    rows = [cloze_row("a", 200), cloze_row("b", 300)]
    write_slamkit_folder(rows, tmp_path)
    (tmp_path / "a_correct.wav").unlink()
    (tmp_path / "b_mutual.wav").write_bytes(b"RIFF half a file")
    untouched = tmp_path / "a_mutual.wav"
    os.utime(untouched, (1, 1))

    assert write_slamkit_folder(rows, tmp_path) == {"items": 2, "files": 6, "written": 2}
    assert untouched.stat().st_mtime == 1
    for row in rows:
        for side, label in (("prompt", "mutual"), ("correct", "correct"), ("negative", "incorrect")):
            found = (tmp_path / f"{row['id']}_{label}.wav").read_bytes()
            assert samples(found) == samples(row[f"{side}_audio"]["bytes"])
    assert write_slamkit_folder(rows, tmp_path)["written"] == 0


def test_an_interrupted_write_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if str(target).endswith("a_incorrect.wav"):
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        write_slamkit_folder([cloze_row("a", 200)], tmp_path)
    assert sorted(each.name for each in tmp_path.glob("*.wav")) == ["a_correct.wav", "a_mutual.wav"]
    monkeypatch.undo()
    assert write_slamkit_folder([cloze_row("a", 200)], tmp_path)["written"] == 1
    assert not list(tmp_path.glob(".*"))


def test_recordings_of_other_rows_are_noticed(tmp_path):
    write_slamkit_folder([pair_row("old", 200), pair_row("b", 300)], tmp_path)
    with pytest.raises(
        ValueError, match=r"also holds 2 WAV files that no row has \(0_old_correct.wav, 1_old"
    ):
        write_slamkit_folder([pair_row("a", 200), pair_row("b", 300)], tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([cloze_row("a", 200), cloze_row("a", 300)], "the id 'a' comes twice"),
        ([cloze_row("a", 200), pair_row("b", 300)], "row 'b' has no audio in prompt_audio"),
        ([pair_row("a", 200) | {"negative_audio": None}], "row 'a' has no audio in negative_audio"),
        (
            [pair_row("a", 200) | {"negative_audio": {"bytes": None, "path": "x.wav"}}],
            "row 'a' has no audio in negative_audio",
        ),
        (
            [pair_row("a", 200) | {"correct_audio": b"no sound"}],
            "correct_audio of row 'a': not an audio file",
        ),
        ([pair_row("", 200)], "row 0 has no id; expected pair rows"),
        ([{"story_id": "s", "units_en": [[1]]}], "row 0 has no id; expected pair rows"),
        ([pair_row("x" * 240, 200)], "is too long for a file name"),
    ],
)
def test_rows_that_cannot_be_written_are_refused_by_name(tmp_path, rows, message):
    with pytest.raises(ValueError) as refused:
        write_slamkit_folder(rows, tmp_path)
    assert message in str(refused.value)


# ZeroSpeech submissions


def test_a_submission_has_a_line_for_every_file(tmp_path):
    scores = {"b": np.float32(-447.895), "a": -0.1, "c": 1e-300}
    path = write_zerospeech_submission(scores, tmp_path, "lexical", "dev", names=["a", "b", "c"])

    assert path == tmp_path / "lexical" / "dev.txt"
    content = path.read_bytes().decode()
    assert content == f"a -0.1\nb {float(np.float32(-447.895))!r}\nc 1e-300\n"
    # As zerospeech2021-validate splits a line, and as pandas reads it.
    read = dict(line.strip().split(" ") for line in content.splitlines())
    assert {name: float(score) for name, score in read.items()} == {
        name: float(score) for name, score in scores.items()
    }


def test_a_submission_for_a_local_copy_takes_its_names(tmp_path):
    (tmp_path / "syntactic" / "test").mkdir(parents=True)
    for name in ("q", "p"):
        write_audio(tmp_path / "syntactic" / "test" / f"{name}.wav", tone(200), 16000)
    names = zerospeech_names(tmp_path, "syntactic", "test")
    pairs = [("q", -1), ("p", -2)]
    path = write_zerospeech_submission(pairs, tmp_path / "out", "syntactic", "test", names=names)
    assert path.read_text() == "p -2.0\nq -1.0\n"
    # A new version takes the place of the old one.
    write_zerospeech_submission({"q": 0, "p": 1}, tmp_path / "out", "syntactic", "test", names=names)
    assert path.read_text() == "p 1.0\nq 0.0\n"
    assert os.listdir(path.parent) == ["test.txt"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": 1.0}, "1 have no score ('b')"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "1 are no recordings of this set ('c')"),
        ({"a": 1.0, "b": float("nan")}, "1 have a score that is not finite ('b')"),
        ({"a": float("-inf"), "b": 1.0}, "1 have a score that is not finite ('a')"),
        ([("a", 1.0), ("b", 1.0), ("a", 1.0)], "1 are scored more than once ('a')"),
        (
            {"a.wav": 1.0, "b": 1.0},
            "1 have no score ('a'); 1 are no recordings of this set ('a.wav')",
        ),
        ({}, "2 have no score ('a', 'b')"),
    ],
)
def test_a_submission_that_the_toolkit_would_refuse_is_not_written(tmp_path, scores, message):
    with pytest.raises(ValueError) as refused:
        write_zerospeech_submission(scores, tmp_path, "lexical", "dev", names=["a", "b"])
    assert str(refused.value) == f"a submission for lexical/dev has every one of its 2 files once: {message}"
    assert os.listdir(tmp_path) == []


def test_names_and_places_that_a_submission_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="are no plain names"):
        write_zerospeech_submission({"a b": 1.0}, tmp_path, "lexical", "dev", names=["a b"])
    with pytest.raises(ValueError, match=r"are asked for more than once \('a'\)"):
        write_zerospeech_submission({"a": 1.0}, tmp_path, "lexical", "dev", names=["a", "a"])
    with pytest.raises(ValueError, match="unknown task 'swuggy'; use one of lexical, syntactic"):
        write_zerospeech_submission({"a": 1.0}, tmp_path, "swuggy", "dev", names=["a"])
    with pytest.raises(ValueError, match="unknown subset 'train'; use one of dev, test"):
        write_zerospeech_submission({"a": 1.0}, tmp_path, "lexical", "train", names=["a"])


def test_meta_has_what_the_toolkit_requires(tmp_path):
    path = write_zerospeech_meta(
        tmp_path / "out",
        authors="Zoé Martin, A. Moumen",
        institution="clsi",
        publication_year=2026,
        system_description="interleaved: 360M",
        train_set="TinyStories",
        open_source=True,
        gpu_budget="4",
    )
    assert path == tmp_path / "out" / "meta.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {
        "benchmark_name": "sLM21",
        "model_info": {
            "system_description": "interleaved: 360M",
            "train_set": "TinyStories",
            "gpu_budget": "4",
        },
        "publication": {
            "author_label": "Zoé Martin",
            "authors": "Zoé Martin, A. Moumen",
            "publication_year": 2026,
            "institution": "clsi",
        },
        "open_source": True,
    }
    with pytest.raises(ValueError, match=r"meta\.yaml needs authors, train_set"):
        write_zerospeech_meta(
            tmp_path,
            authors=" ",
            institution="clsi",
            publication_year=2026,
            system_description="x",
            train_set="",
            open_source=False,
        )
