"""Recordings to rows: what an input is taken for, what is refused, and that what is written reads back."""

import json

import numpy as np
import pytest
import yaml

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.rows import encoding
from hf_clsi.rows.encoding import encode_recordings
from hf_clsi.rows.recordings import RefusedRecording, find_recordings
from hf_clsi.rows.shards import read_rows
from hf_clsi.speech.audio import read_audio, write_audio
from hf_clsi.units.encode import encode_waveforms, load_audio_tokenizer
from hf_clsi.units.kmeans import fit_units
from hf_clsi.units.tokenizers import resolve_audio_tokenizer


def sound(seconds, seed, rate=16000):
    """A gliding tone in noise, so that frames differ."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (150 + 40 * seed + 300 * np.sin(3 * time)) * time)
    level = 0.5 + 0.5 * np.sin(5 * time + seed)
    return (0.2 * level * tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def write(path, seconds=0.8, seed=0, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, sound(seconds, seed, rate), rate)
    return path


def write_lines(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(folder, count=5, readme=True):
    """A corpus like shared/data/parallel_prompts_en_fr: English FLAC at 16 kHz, French WAV at 22,050 Hz."""
    entries = []
    for i in range(count):
        write(folder / f"en/p{i}.flac", 0.5 + 0.13 * i, seed=i)
        write(folder / f"fr/p{i}.wav", 0.7 + 0.09 * i, seed=20 + i, rate=22050)
        entries.append(
            {
                "id": f"p{i}",
                "audio_en": f"en/p{i}.flac",
                "text_en": f"Prompt {i}.",
                "duration_en": 9.0,
                "audio_fr": f"fr/p{i}.wav",
                "text_fr": f"Énoncé {i}.",
                "duration_fr": 9.0,
            }
        )
    write_lines(folder / "metadata.jsonl", entries)
    if readme:
        text = "# Prompts\n\nLicence: CC BY-SA 3.0. Read by A and B.\n\nMore.\n"
        (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Folder of an embedded tokenizer with 8 units at 12.5 Hz."""
    config = ClsiUnitsConfig(num_units=8)
    speech = [sound(2.0, seed) for seed in range(4)]
    folder = tmp_path_factory.mktemp("tokenizers") / "embedded"
    fit_units(speech, config, seed=0, progress=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mimi(tmp_path_factory, tiny_mimi):
    """Folder of a small random Mimi."""
    folder = tmp_path_factory.mktemp("tokenizers") / "mimi"
    tiny_mimi().save_pretrained(folder)
    return str(folder)


def loaded(folder, cache, split="test"):
    """The split as a stranger gets it, with datasets alone."""
    from datasets import load_dataset

    return load_dataset(str(folder), split=split, cache_dir=str(cache))


def summary(found):
    return [(row.id, row.paths, row.texts) for row in found.rows]


def reasons(found):
    return [(refusal.id, refusal.reason) for refusal in found.refused]


def refused_lines(folder):
    return [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]


# ---- Finding


def test_metadata_names_the_rows_the_languages_and_their_order(tmp_path):
    pairs(tmp_path / "corpus", 2)
    for source in (tmp_path / "corpus", tmp_path / "corpus/metadata.jsonl"):
        found = find_recordings(source)
        assert found.languages == ("en", "fr") and not found.refused and not found.ignored
        corpus = tmp_path / "corpus"
        assert summary(found) == [
            (f"p{i}", (f"{corpus}/en/p{i}.flac", f"{corpus}/fr/p{i}.wav"), (f"Prompt {i}.", f"Énoncé {i}."))
            for i in range(2)
        ]
        assert found.rows[1].sources == ("en/p1.flac", "fr/p1.wav")
    assert find_recordings(tmp_path / "corpus", ["fr"]).rows[0].texts == ("Énoncé 0.",)
    with pytest.raises(ValueError, match=r"has audio_de, .* it has audio in en, fr"):
        find_recordings(tmp_path / "corpus", ["en", "de"])


def test_faulty_lines_of_metadata_are_refused_by_reason(tmp_path):
    good = {
        "id": "a",
        "audio_en": "a.wav",
        "audio_fr": "b.wav",
        "speaker": "ann",
        "licence": "CC0",
        "mood": 1,
    }
    entries = [
        good,
        "{broken",
        ["no", "object"],
        {"audio_en": "a.wav", "audio_fr": "b.wav"},
        {"id": "alone", "audio_en": "a.wav"},
        {"id": "a", "audio_en": "c.wav", "audio_fr": "d.wav"},
        {"id": "typed", "audio_en": "a.wav", "audio_fr": "b.wav", "text_en": 5},
        {"id": 7, "audio_en": "a.wav", "audio_fr": "b.wav", "source_fr": "radio"},
    ]
    write_lines(tmp_path / "metadata.jsonl", entries)
    found = find_recordings(tmp_path)
    assert [row.id for row in found.rows] == ["a", "7"]
    assert reasons(found) == [
        ("line 2", "bad_metadata"),
        ("line 3", "bad_metadata"),
        ("line 4", "bad_metadata"),
        ("alone", "incomplete"),
        ("a", "duplicate_id"),
        ("typed", "bad_metadata"),
    ]
    assert found.rows[0].metadata == {"speaker": "ann", "licence": "CC0"}
    assert found.rows[1].sources == ("a.wav", "radio")
    assert found.ignored == {"field mood": 1}
    assert "text_en" not in found.columns()  # no usable row has a text
    assert found.columns()["licence"] == "string"


def test_sub_folders_pair_up_by_name(tmp_path):
    for name in (
        "en/a.wav",
        "fr/a.flac",
        "en/deep/b.wav",
        "fr/deep/b.wav",
        "en/c.wav",
        "fr/d.wav",
        "en/e.wav",
    ):
        write(tmp_path / name)
    write(tmp_path / "en/e.flac")
    write(tmp_path / "fr/e.flac")
    (tmp_path / "en/notes.txt").write_text("no recording")
    (tmp_path / "fr/x.m4a").write_text("nor this, which libsndfile cannot read")
    (tmp_path / ".hidden.wav").write_text("")
    found = find_recordings(tmp_path)
    assert found.languages == ("en", "fr")
    assert [(row.id, row.sources) for row in found.rows] == [
        ("a", ("en/a.wav", "fr/a.flac")),
        ("deep/b", ("en/deep/b.wav", "fr/deep/b.wav")),
    ]
    assert reasons(found) == [("c", "incomplete"), ("d", "incomplete"), ("e", "ambiguous")]
    assert found.refused[0].message == "no file in fr/"
    assert found.ignored == {".txt files": 1, ".m4a files": 1}
    assert find_recordings(tmp_path, ["fr", "en"]).rows[0].sources == ("fr/a.flac", "en/a.wav")
    with pytest.raises(ValueError, match="has no sub-folder de"):
        find_recordings(tmp_path, ["en", "de"])


def test_recordings_of_one_language_need_its_name(tmp_path):
    for name in ("b.wav", "speaker1/a.flac", "a.mp3", "a.wav"):
        write(tmp_path / "flat" / name)
    write_lines(tmp_path / "list.txt", ["# chosen", "flat/b.wav", "", "flat/a.mp3", "gone.wav"])
    found = find_recordings(tmp_path / "flat", ["en"])
    assert [(row.id, row.sources[0]) for row in found.rows] == [
        ("a", "a.mp3"),
        ("b", "b.wav"),
        ("speaker1/a", "speaker1/a.flac"),
    ]
    assert reasons(found) == [("a", "duplicate_id")]
    listed = find_recordings(tmp_path / "list.txt", ["en"])
    assert [row.id for row in listed.rows] == ["flat/b", "flat/a", "gone"]
    assert listed.rows[0].paths == (str(tmp_path / "flat/b.wav"),)
    assert [row.id for row in find_recordings(tmp_path / "flat/b.wav", ["en"]).rows] == ["b"]
    with pytest.raises(ValueError, match="in which language"):
        find_recordings(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"list of recordings of one language.*got en, fr"):
        find_recordings(tmp_path / "list.txt", ["en", "fr"])


def test_inputs_that_hold_nothing_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_recordings(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither a metadata\.jsonl nor recordings"):
        find_recordings(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no recording to encode"):
        find_recordings(tmp_path / "empty", ["en"])
    write(tmp_path / "strange/Speaker 1/a.wav")
    with pytest.raises(ValueError, match="but there is 'Speaker 1'"):
        find_recordings(tmp_path / "strange")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"neither a recording .* nor a text file"):
        find_recordings(tmp_path / "image.png", ["en"])


# ---- Encoding


@pytest.mark.parametrize("kind", ["embedded", "mimi"])
def test_rows_read_back_with_the_units_of_each_clip_alone(tmp_path, kind, request):
    path = request.getfixturevalue(kind)
    corpus, out = pairs(tmp_path / "corpus"), tmp_path / "out"
    record = encode_recordings(corpus, out, audio_tokenizer=path, progress=False)
    tokenizer = load_audio_tokenizer(path)
    rate = tokenizer.config.sampling_rate
    rows = loaded(out, tmp_path / "cache")
    assert rows.column_names == [
        *("story_id", "speaker", "units_en", "units_fr", "text_en", "text_fr"),
        *("source_en", "source_fr", "seconds_en", "seconds_fr", "audio_tokenizer"),
    ]
    assert rows.features["units_en"].feature.feature.dtype == "uint16"
    assert rows["story_id"][:] == ["p0", "p1", "p2", "p3", "p4"]
    for i, row in enumerate(rows):
        for language, suffix in (("en", "flac"), ("fr", "wav")):
            waveform, _ = read_audio(corpus / f"{language}/p{i}.{suffix}", rate)
            alone = encode_waveforms([waveform], tokenizer, progress=False)[0]
            assert row[f"units_{language}"] == [alone.tolist()]
            assert row[f"seconds_{language}"] == pytest.approx(len(waveform) / rate, abs=1e-4)
        assert (row["text_en"], row["text_fr"]) == ([f"Prompt {i}."], [f"Énoncé {i}."])
        assert (row["speaker"], row["source_fr"]) == ("unknown", f"fr/p{i}.wav")
    assert record.units["en"] == sum(len(units[0]) for units in rows["units_en"])
    assert record.clips == {"en": 5, "fr": 5} and record.rows == 5 and record.finished
    assert record.seconds["en"] == pytest.approx(sum(0.5 + 0.13 * i for i in range(5)), abs=1e-3)
    label = f"hf_clsi embedded, sha256 {tokenizer.codebook_digest()}" if kind == "embedded" else "mimi"
    assert set(rows["audio_tokenizer"]) == {label} == {record.audio_tokenizer}


def test_without_a_tokenizer_one_is_fitted_on_the_input_and_kept(tmp_path):
    corpus = pairs(tmp_path / "corpus")
    options = {"num_units": 6, "frame_rate_hz": 25.0, "duration_penalty": 1.0, "progress": False}
    record = encode_recordings(corpus, tmp_path / "out", seed=3, **options)
    tokenizer = load_audio_tokenizer(str(tmp_path / "out/audio_tokenizer"))
    assert (tokenizer.config.num_units, tokenizer.config.frame_rate) == (6, 25.0)
    assert tokenizer.config.duration_penalty == 1.0
    assert record.tokenizer_origin == "fitted on this input (10 of 10 clips, en, fr, seed 3)"
    row = next(read_rows(tmp_path / "out", "test"))
    waveform, _ = read_audio(corpus / "en/p0.flac", 16000)
    expected = encode_waveforms([waveform], tokenizer, progress=False)[0]
    assert row["units_en"][0].tolist() == expected.tolist() and len(set(expected.tolist())) > 1

    again = encode_recordings(corpus, tmp_path / "again", seed=3, **options)
    assert again.audio_tokenizer == record.audio_tokenizer
    assert (
        encode_recordings(corpus, tmp_path / "other", seed=4, **options).audio_tokenizer
        != again.audio_tokenizer
    )


def test_a_further_split_shares_the_tokenizer_of_the_first(tmp_path, embedded):
    first, second = pairs(tmp_path / "one", 4), pairs(tmp_path / "two", 2)
    out = tmp_path / "out"
    train = encode_recordings(first, out, split="train", num_units=6, progress=False)
    before = (out / "audio_tokenizer/model.safetensors").read_bytes()
    test = encode_recordings(second, out, split="test", num_units=6, progress=False)
    assert (out / "audio_tokenizer/model.safetensors").read_bytes() == before
    assert test.audio_tokenizer == train.audio_tokenizer
    assert len(loaded(out, tmp_path / "cache", "train")) == 4 and len(loaded(out, tmp_path / "cache")) == 2
    card = (out / "README.md").read_text()
    assert "| default | train | 4 |" in card and "| default | test | 2 |" in card
    with pytest.raises(ValueError, match="num_units = 6, not 7"):
        encode_recordings(second, out, split="validation", num_units=7, progress=False)
    with pytest.raises(ValueError, match="their units mean different things"):
        encode_recordings(second, out, split="validation", audio_tokenizer=embedded, progress=False)
    with pytest.raises(ValueError, match=r"other columns \(audio_en, audio_fr in one of the two only\)"):
        encode_recordings(second, out, split="validation", num_units=6, keep_audio=True, progress=False)
    # Overwriting one of two splits must not change the tokenizer under the other.
    encode_recordings(second, out, split="train", num_units=6, seed=9, overwrite=True, progress=False)
    assert (out / "audio_tokenizer/model.safetensors").read_bytes() == before


def spoil(corpus):
    """p0 whole; p1 no audio; p2 empty; p3 cut off; p4 NaN; p5 a blink; p6 gone (and p5's French is empty)."""
    pairs(corpus, 7)
    (corpus / "en/p1.flac").write_text("this is a text")
    (corpus / "fr/p2.wav").write_bytes(b"")
    cut = (corpus / "fr/p3.wav").read_bytes()
    (corpus / "fr/p3.wav").write_bytes(cut[: len(cut) // 2])
    import soundfile

    soundfile.write(corpus / "fr/p4.wav", np.full(8000, np.nan, np.float32), 16000, "FLOAT")
    soundfile.write(corpus / "en/p5.flac", np.zeros(1000, np.float32), 16000)
    (corpus / "fr/p5.wav").write_bytes(b"")
    (corpus / "en/p6.flac").unlink()
    return corpus


def test_bad_files_are_left_out_counted_by_reason_and_listed(tmp_path, embedded):
    corpus, out = spoil(tmp_path / "corpus"), tmp_path / "out"
    record = encode_recordings(corpus, out, audio_tokenizer=embedded, progress=False)
    assert record.refused == {
        "empty": 2,
        "missing": 1,
        "not_audio": 1,
        "not_finite": 1,
        "too_short": 1,
        "truncated": 1,
    }
    assert (record.rows, record.rows_refused, record.clips) == (1, 6, {"en": 1, "fr": 1})
    assert loaded(out, tmp_path / "cache")["story_id"][:] == ["p0"]
    lines = refused_lines(out)
    assert [(line["id"], line["reason"]) for line in lines] == [
        ("p1", "not_audio"),
        ("p2", "empty"),
        ("p3", "truncated"),
        ("p4", "not_finite"),
        ("p5", "too_short"),
        ("p5", "empty"),
        ("p6", "missing"),
    ]
    assert lines[0]["path"] == "en/p1.flac" and lines[0]["split"] == "test"
    # The list goes where the dataset goes, so it says no more than where in the source a file is.
    assert str(tmp_path) not in (out / "refused.jsonl").read_text()
    card = (out / "README.md").read_text()
    assert "| empty | 2 |" in card and "`refused.jsonl` lists each." in card


def test_a_tokenizer_is_fitted_on_what_can_be_read(tmp_path):
    record = encode_recordings(spoil(tmp_path / "corpus"), tmp_path / "out", num_units=4, progress=False)
    assert record.tokenizer_origin.startswith("fitted on this input (7 of 14 clips")
    assert record.rows == 1


def test_an_input_of_bad_files_only_is_an_error_that_names_the_first(tmp_path, embedded):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "ab":
        (corpus / f"{name}.wav").write_text("text")
    with pytest.raises(
        ValueError, match=r"2 of 2 clips cannot be used; the first: recording 'a' .*not_audio"
    ):
        encode_recordings(corpus, tmp_path / "fitted", languages=["en"], progress=False)
    options = {"languages": ["en"], "audio_tokenizer": embedded, "progress": False}
    with pytest.raises(ValueError, match=r"none of the 2 recordings .* can be used \(not_audio 2\)"):
        encode_recordings(corpus, tmp_path / "out", **options)
    assert len(refused_lines(tmp_path / "out")) == 2
    # Mended, the same call works: nothing is left of the first.
    write(corpus / "a.wav")
    assert encode_recordings(corpus, tmp_path / "out", **options).rows == 1


def test_an_interrupted_encoding_goes_on_behind_its_last_shard(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 7), tmp_path / "out"
    (corpus / "fr/p1.wav").write_bytes(b"")
    sound_of_5 = (corpus / "en/p5.flac").read_bytes()
    options = {"audio_tokenizer": embedded, "max_rows_per_shard": 2, "progress": False}
    calls = []
    read = encoding.read_audio

    def failing(path, *rest):
        calls.append(path)
        if path.endswith("en/p5.flac"):
            raise KeyboardInterrupt
        return read(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "read_audio", failing)
        with pytest.raises(KeyboardInterrupt):
            encode_recordings(corpus, out, **options)
    names = [f"test-{i:05d}-of-00004.parquet" for i in range(4)]
    assert sorted(path.name for path in (out / "data").iterdir()) == names[:2]
    assert [line["id"] for line in refused_lines(out)] == ["p1"]
    with pytest.raises(FileExistsError, match="unfinished split 'test', made with other max_rows_per_shard"):
        encode_recordings(corpus, out, **options | {"max_rows_per_shard": 3})

    assert (corpus / "en/p5.flac").read_bytes() == sound_of_5
    first = (out / "data" / names[0]).stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "read_audio", lambda path, *rest: calls.append(path) or read(path, *rest))
        calls.clear()
        record = encode_recordings(corpus, out, **options)
    assert [path.rsplit("/", 1)[1] for path in calls] == [
        "p4.flac",
        "p4.wav",
        "p5.flac",
        "p5.wav",
        "p6.flac",
        "p6.wav",
    ]
    assert (out / "data" / names[0]).stat().st_mtime_ns == first
    straight = encode_recordings(corpus, tmp_path / "straight", **options)
    assert record == straight
    assert (out / "refused.jsonl").read_text() == (tmp_path / "straight/refused.jsonl").read_text()
    rows = loaded(out, tmp_path / "cache")
    assert rows["story_id"][:] == ["p0", "p2", "p3", "p4", "p5", "p6"]
    assert rows.to_list() == loaded(tmp_path / "straight", tmp_path / "cache").to_list()


def interrupt(monkeypatch, name, call):
    """Let the `call`-th call of a function of the module be the moment when the user presses Ctrl-C."""
    function, count = getattr(encoding, name), 0

    def interrupted(*arguments, **options):
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(encoding, name, interrupted)


def test_a_shard_that_was_written_but_not_noted_is_made_again(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 6), tmp_path / "out"
    for i in (0, 2):
        (corpus / f"fr/p{i}.wav").write_bytes(b"")
    options = {"audio_tokenizer": embedded, "max_rows_per_shard": 2, "progress": False}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, "write_splits", 3)  # calls: before all shards, after the first, after the second
        encode_recordings(corpus, out, **options)
    assert [line["id"] for line in refused_lines(out)] == ["p0", "p2"]
    assert encode_recordings(corpus, out, **options).refused == {"empty": 2}
    assert [line["id"] for line in refused_lines(out)] == ["p0", "p2"]
    assert loaded(out, tmp_path / "cache")["story_id"][:] == ["p1", "p3", "p4", "p5"]


def test_what_no_finished_shard_depends_on_may_change_after_an_interruption(tmp_path):
    corpus, out = pairs(tmp_path / "corpus", 6), tmp_path / "out"
    options = {"num_units": 5, "progress": False}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, "write_splits", 2)
        encode_recordings(corpus, out, max_rows_per_shard=2, **options)
    assert len(list((out / "data").iterdir())) == 1 and (out / "audio_tokenizer").is_dir()
    record = encode_recordings(corpus, out, max_rows_per_shard=3, **options | {"num_units": 4})
    assert (record.num_units, record.num_shards, record.rows) == (4, 2, 6)
    assert len(loaded(out, tmp_path / "cache")) == len(list(read_rows(out, "test"))) == 6


def test_refuse_stops_at_the_first_bad_file_and_says_which(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 4), tmp_path / "out"
    (corpus / "fr/p2.wav").write_bytes(b"")
    options = {"audio_tokenizer": embedded, "max_rows_per_shard": 1, "progress": False}
    with pytest.raises(
        RefusedRecording, match=r"recording 'p2' is refused \(empty\): .*fr/p2.wav: the file has no"
    ):
        encode_recordings(corpus, out, on_error="refuse", **options)
    assert len(list((out / "data").glob("*.parquet"))) == 2
    # Decided otherwise, the finished shards count; the shard of p2 stays, without rows.
    record = encode_recordings(corpus, out, on_error="skip", **options)
    assert (record.rows, record.num_shards, record.refused) == (3, 4, {"empty": 1})
    assert loaded(out, tmp_path / "cache")["story_id"][:] == ["p0", "p1", "p3"]
    write_lines(tmp_path / "bad/metadata.jsonl", [{"id": "a", "audio_en": "a.wav"}, "{"])
    with pytest.raises(RefusedRecording, match=r"'line 2' is refused \(bad_metadata\)"):
        encode_recordings(tmp_path / "bad", tmp_path / "none", on_error="refuse", progress=False)
    assert not (tmp_path / "none").exists()


def test_a_split_is_replaced_only_when_told(tmp_path, embedded):
    out = tmp_path / "out"
    options = {"audio_tokenizer": embedded, "progress": False}
    encode_recordings(pairs(tmp_path / "long", 5), out, max_rows_per_shard=2, **options)
    with pytest.raises(FileExistsError, match="holds the split 'test' already"):
        encode_recordings(pairs(tmp_path / "short", 2), out, **options)
    assert len(loaded(out, tmp_path / "cache")) == 5
    encode_recordings(tmp_path / "short", out, overwrite=True, **options)
    assert [path.name for path in (out / "data").iterdir()] == ["test-00000-of-00001.parquet"]
    assert loaded(out, tmp_path / "cache")["story_id"][:] == ["p0", "p1"]

    with pytest.raises(ValueError, match="holds the input itself"):
        encode_recordings(tmp_path / "short", tmp_path / "short", **options)
    pairs(tmp_path / "foreign", 1)
    with pytest.raises(FileExistsError, match=r"README\.md of something else"):
        encode_recordings(tmp_path / "short", tmp_path / "foreign", **options)


def test_kept_audio_is_the_file_itself(tmp_path, embedded):
    corpus = pairs(tmp_path / "corpus", 2)
    encode_recordings(corpus, tmp_path / "out", audio_tokenizer=embedded, keep_audio=True, progress=False)
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    audio = rows[1]["audio_fr"][0]
    assert audio == {"bytes": (corpus / "fr/p1.wav").read_bytes(), "path": "p1.wav"}


def test_portions_change_nothing(tmp_path, embedded, monkeypatch):
    corpus = pairs(tmp_path / "corpus", 6)
    options = {"audio_tokenizer": embedded, "progress": False}
    whole = encode_recordings(corpus, tmp_path / "whole", **options)
    sizes = []

    def noting(waveforms, *rest, **options):
        sizes.append(len(waveforms))
        return encode_waveforms(waveforms, *rest, **options)

    monkeypatch.setattr(encoding, "encode_waveforms", noting)
    monkeypatch.setattr(encoding, "PORTION_CLIPS", 4)
    parts = encode_recordings(corpus, tmp_path / "parts", **options)
    assert sizes[:3] == [4, 4, 4]
    assert parts == whole
    rows = [loaded(tmp_path / name, tmp_path / "cache").to_list() for name in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_texts_and_metadata_come_along(tmp_path, embedded):
    for name in "abc":
        write(tmp_path / f"corpus/{name}.wav")
    entries = [
        {"id": "a", "audio_en": "a.wav", "text_en": "Yes.", "speaker": "ann", "voice_en": "ann"},
        {"id": "b", "audio_en": "b.wav", "licence": "CC0-1.0", "seed": 5},
        {"id": "c", "audio_en": "c.wav", "source_en": "tape 3"},
    ]
    write_lines(tmp_path / "corpus/metadata.jsonl", entries)
    encode_recordings(tmp_path / "corpus", tmp_path / "out", audio_tokenizer=embedded, progress=False)
    rows = loaded(tmp_path / "out", tmp_path / "cache").remove_columns(
        ["units_en", "seconds_en", "audio_tokenizer"]
    )
    empty = {"speaker": "unknown", "text_en": [""], "licence": None, "seed": None, "voice_en": None}
    assert rows.to_list() == [
        empty
        | {"story_id": "a", "speaker": "ann", "text_en": ["Yes."], "voice_en": "ann", "source_en": "a.wav"},
        empty | {"story_id": "b", "licence": "CC0-1.0", "seed": 5, "source_en": "b.wav"},
        empty | {"story_id": "c", "source_en": "tape 3"},
    ]


def test_the_card_says_how_it_was_made_and_whose_it_is(tmp_path, embedded):
    out = tmp_path / "out"
    corpus = pairs(tmp_path / "corpus", 2)
    encode_recordings(corpus, out, audio_tokenizer=embedded, progress=False)
    card = (out / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "cc-by-sa-3.0" and header["language"] == ["en", "fr"]
    assert header["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*-of-00001.parquet"}]}
    ]
    assert "\n  > Licence: CC BY-SA 3.0. Read by A and B.\n" in card and "(SOURCE_README.md)" in card
    assert load_audio_tokenizer(embedded).codebook_digest() in card
    assert (out / "SOURCE_README.md").read_bytes() == (corpus / "README.md").read_bytes()
    # The paths of this machine are nobody's business.
    assert not [file for file in ("README.md", "encoding.json") if str(tmp_path) in (out / file).read_text()]

    bare = pairs(tmp_path / "bare", 2, readme=False)
    encode_recordings(bare, tmp_path / "out2", audio_tokenizer=embedded, progress=False)
    assert "find out whose the recordings are" in (tmp_path / "out2/README.md").read_text()
    assert not (tmp_path / "out2/SOURCE_README.md").exists()


def test_speakers_and_licence_go_into_the_rows_that_do_not_name_any(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 2), tmp_path / "out"
    lines = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    lines[1] |= {"speaker": "guest", "voice_fr": "guest", "licence_en": "CC0-1.0"}
    write_lines(corpus / "metadata.jsonl", lines)
    options = {"audio_tokenizer": embedded, "progress": False}
    said = {"speakers": {"fr": "June", "en": "Allison"}, "licence": "cc-by-4.0"}
    record = encode_recordings(corpus, out, **said, **options)
    names = ["speaker", "voice_en", "voice_fr", "licence_en", "licence_fr"]
    assert [[row[name] for name in names] for row in loaded(out, tmp_path / "cache")] == [
        ["Allison; June", "Allison", "June", "cc-by-4.0", "cc-by-4.0"],
        ["guest", "Allison", "guest", "CC0-1.0", "cc-by-4.0"],
    ]
    assert record.licence_tag == "cc-by-4.0" and record.licence.startswith("Licence: CC BY-SA 3.0")
    assert "| Allison | 2 | Allison | – | cc-by-4.0 |" in (out / "README.md").read_text()
    one = find_recordings(pairs(tmp_path / "plain", 1)).attributed({"en": "Allison"})
    assert one.rows[0].metadata == {"voice_en": "Allison"}  # who speaks the whole row is not known
    for wrong in ({"de": "Anna"}, {"en": ""}):
        with pytest.raises(ValueError, match="name persons for en, fr"):
            encode_recordings(corpus, tmp_path / "none", speakers=wrong, **options)


def test_configs_lie_side_by_side_and_share_the_tokenizer(tmp_path):
    from datasets import load_dataset

    corpus, out = pairs(tmp_path / "corpus", 3), tmp_path / "out"
    options = {"num_units": 5, "progress": False}
    first = encode_recordings(corpus, out, config="en-fr", **options)
    second = encode_recordings(corpus, out, config="fr", languages=["fr"], **options)
    assert second.audio_tokenizer == first.audio_tokenizer and second.fit == first.fit
    assert first.fit == {"num_units": 5, "frame_rate_hz": 12.5, "duration_penalty": 0.0, "seed": 0}
    assert sorted(path.name for path in out.glob("*/*.parquet")) == ["test-00000-of-00001.parquet"] * 2
    assert list(json.loads((out / "encoding.json").read_text())) == ["en-fr/test", "fr/test"]
    cache = str(tmp_path / "cache")
    assert "units_en" in load_dataset(str(out), split="test", cache_dir=cache).column_names  # the default
    assert "units_en" not in load_dataset(str(out), "fr", split="test", cache_dir=cache).column_names
    with pytest.raises(FileExistsError, match="holds the split 'fr/test' already"):
        encode_recordings(corpus, out, config="fr", languages=["fr"], **options)
    with pytest.raises(ValueError, match="config 'e/n' must be words"):
        encode_recordings(corpus, tmp_path / "other", config="e/n", **options)


def test_an_encoding_of_an_older_version_gets_a_further_split(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 2), tmp_path / "out"
    options = {"audio_tokenizer": embedded, "progress": False}
    encode_recordings(corpus, out, **options)
    records = json.loads((out / "encoding.json").read_text())
    for name in ("config", "fit", "speakers", "licence_tag"):  # version 0.1 did not have them
        del records["test"][name]
    (out / "encoding.json").write_text(json.dumps(records))
    encode_recordings(corpus, out, split="train", **options)
    assert len(loaded(out, tmp_path / "cache")) == len(loaded(out, tmp_path / "cache", "train")) == 2


def test_halves_of_a_killed_encoding_are_removed(tmp_path, embedded):
    corpus, out = pairs(tmp_path / "corpus", 2), tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data/.test-00000-of-00001.parquet.4711.partial").write_text("half")
    encode_recordings(corpus, out, audio_tokenizer=embedded, progress=False)
    assert [path.name for path in (out / "data").iterdir()] == ["test-00000-of-00001.parquet"]


def test_a_licence_line_that_names_a_path_of_this_machine_is_not_repeated(tmp_path, embedded):
    corpus = pairs(tmp_path / "corpus", 2)
    (corpus / "README.md").write_text("Licence: see /home/ann/LICENCE.txt\n")
    encode_recordings(corpus, tmp_path / "out", audio_tokenizer=embedded, progress=False)
    card = (tmp_path / "out/README.md").read_text()
    assert "/home/ann" not in card and "> see [SOURCE_README.md](SOURCE_README.md)" in card


def test_a_model_folder_stands_for_the_tokenizer_it_carries_or_names(tmp_path, embedded):
    assert resolve_audio_tokenizer("kyutai/mimi") == "kyutai/mimi"
    assert resolve_audio_tokenizer(embedded) == embedded
    model = tmp_path / "models/interleave-ft"
    (model / "audio_tokenizer").mkdir(parents=True)
    (model / "audio_tokenizer/config.json").write_text("{}")
    assert resolve_audio_tokenizer(model) == str(model / "audio_tokenizer")
    naming = tmp_path / "naming"
    naming.mkdir()
    for reference, expected in (("kyutai/mimi", "kyutai/mimi"), ("./codec", str(naming / "codec"))):
        (naming / "processor_config.json").write_text(json.dumps({"audio_tokenizer_id": reference}))
        assert resolve_audio_tokenizer(naming) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be one of skip, refuse, got 'ignore'"),
        ({"max_rows_per_shard": 0}, "max_rows_per_shard must be at least 1, got 0"),
        ({"split": "no/split"}, "split 'no/split' must be words"),
        ({"frame_rate_hz": 30}, "must divide 16000 Hz into whole samples, got 30"),
        ({"languages": ["e n"]}, "'e n' is not a language code"),
        ({"num_units": 10_000}, "are too few for 10000 units"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, options, message):
    corpus = pairs(tmp_path / "corpus", 1)
    with pytest.raises(ValueError, match=message):
        encode_recordings(corpus, tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()
