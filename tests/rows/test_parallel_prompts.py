"""Pairs of recordings to the dataset `parallel-prompts`: its config, card and record, and how it goes on."""

import json

import numpy as np
import pytest

from hf_clsi.rows import encoding, parallel_prompts
from hf_clsi.rows.build_folder import lock
from hf_clsi.rows.parallel_prompts import build_parallel_prompts
from hf_clsi.rows.shards import read_rows
from hf_clsi.speech.audio import read_audio, write_audio
from hf_clsi.units.encode import encode_waveforms, load_audio_tokenizer

OPTIONS = {"num_units": 6, "speakers": {"en": "Ann", "fr": "Zoé"}, "progress": False}


@pytest.fixture
def corpus(tmp_path):
    """Four sentences in English, French and German, and whose they are."""
    folder = tmp_path / "prompts"
    lines = []
    for i in range(4):
        line = {"id": f"p{i}"}
        for j, language in enumerate(("en", "fr", "de")):
            (folder / language).mkdir(parents=True, exist_ok=True)
            time = np.arange(8000 + 1600 * i + 800 * j) / 16000
            noise = np.random.default_rng(10 * i + j).standard_normal(len(time))
            wave = 0.3 * np.sin(2 * np.pi * (200 + 70 * i + 31 * j) * time * (1 + time)) + 0.02 * noise
            write_audio(folder / f"{language}/p{i}.flac", wave.astype(np.float32), 16000)
            line |= {f"audio_{language}": f"{language}/p{i}.flac", f"text_{language}": f"{language} {i}"}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "README.md").write_text("# P\n\nLicence: CC BY 4.0. Recorded by Ann and Zoé.\n")
    return folder


def build(corpus, folder, languages=("en", "fr"), **options):
    return build_parallel_prompts(corpus, folder, languages=languages, **OPTIONS | options)


def content(folder):
    """Everything but the clock: rows, card and records."""
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    return texts, [repr(row) for row in read_rows(folder, "test", "en-fr")]


def test_what_is_built(corpus, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "out"
    record = build(corpus, out, limits=["Read in a car."])
    rows = load_dataset(str(out), "en-fr", split="test", cache_dir=str(tmp_path / "cache"))
    tokenizer = load_audio_tokenizer(str(out / "audio_tokenizer"))
    assert rows["story_id"][:] == ["p0", "p1", "p2", "p3"]
    for i, row in enumerate(rows):
        assert (row["speaker"], row["voice_en"], row["voice_fr"]) == ("Ann; Zoé", "Ann", "Zoé")
        assert (row["licence_en"], row["licence_fr"]) == ("cc-by-4.0", "cc-by-4.0")
        for language in ("en", "fr"):
            file = corpus / f"{language}/p{i}.flac"
            assert row[f"audio_{language}"] == [{"bytes": file.read_bytes(), "path": file.name}]
            assert row[f"text_{language}"] == [f"{language} {i}"]
            alone = encode_waveforms([read_audio(file, 16000)[0]], tokenizer, progress=False)[0]
            assert row[f"units_{language}"] == [alone.tolist()]

    saved = json.loads((out / "build.json").read_text())
    # 0.5 to 0.8 s are 7, 8, 9 and 10 frames; 0.05 s more in French makes it 7, 9, 10 and 11.
    assert saved["units"] == record.units == {"en": 34, "fr": 37}
    assert saved["seconds"] == {"en": 2.6, "fr": 2.8}
    assert (saved["dataset"], saved["kind"], saved["languages"]) == (
        "parallel-prompts",
        "parallel",
        ["en", "fr"],
    )
    assert (saved["num_units"], saved["dropped"], saved["finished"]) == (6, {}, True)
    assert saved["splits"] == {"en-fr": {"test": {"rows": 4, "shards": 1}}}
    assert saved["voices"][1] == {
        "speaker": "Zoé",
        "rows": 4,
        "voices": {"fr": "Zoé"},
        "licences": {"fr": "cc-by-4.0"},
    }
    card = (out / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card and "\n  > Licence: CC BY 4.0. Recorded by Ann and Zoé.\n" in card
    assert "| Ann | 4 | Ann | – | cc-by-4.0 |\n| Zoé | 4 | – | Zoé | cc-by-4.0 |" in card
    assert "- Read in a car.\n- Each language has a speaker of its own" in card
    assert "fitted on these very recordings" in card
    assert (
        "hf-clsi build parallel-prompts --source prompts --languages en,fr --speakers 'en=Ann,fr=Zoé' "
        "--num-units 6 --frame-rate 12.5 --duration-penalty 0 --seed 0\n" in card
    )
    assert str(tmp_path) not in "".join(content(out)[0].values())


def test_repeated_texts_are_told(corpus, tmp_path):
    lines = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    lines[1]["text_en"] = lines[0]["text_en"]  # in one language only
    lines[3] |= {key: lines[2][key].upper() + "!" for key in ("text_en", "text_fr")}
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(corpus, tmp_path / "out")
    assert "\n- 1 of the 4 pairs of `en-fr` have, in both" in (tmp_path / "out/README.md").read_text()
    for line in lines:
        del line["text_en"]
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(corpus, tmp_path / "bare")  # nothing is known of the English
    assert "pairs of `en-fr`" not in (tmp_path / "bare/README.md").read_text()


def test_interrupted_it_goes_on_and_ends_the_same(corpus, tmp_path, monkeypatch):
    straight, out = tmp_path / "a/out", tmp_path / "b/out"
    (corpus / "fr/p1.flac").write_bytes(b"")
    build(corpus, straight, max_rows_per_shard=1)
    reads = []
    read = encoding.read_audio

    def noting(path, *rest):
        reads.append(path)
        return read(path, *rest)

    with monkeypatch.context() as patch:
        write, count = encoding.write_splits, 0

        def interrupted(*arguments):
            nonlocal count
            count += 1
            if count == 4:  # after three of four shards, the third not yet noted
                raise KeyboardInterrupt
            write(*arguments)

        patch.setattr(encoding, "write_splits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, out, max_rows_per_shard=1)
    assert not (out / "build.json").exists() and not (out / "README.md").exists()
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "read_audio", noting)
        record = build(corpus, out, max_rows_per_shard=1)
    assert [path.rsplit("/", 1)[1] for path in reads] == ["p2.flac"] * 2 + ["p3.flac"] * 2
    assert content(out) == content(straight)
    assert record.dropped == {"empty": 1} and record.splits == {"en-fr": {"test": {"rows": 3, "shards": 4}}}
    assert [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()] == [
        {
            "split": "en-fr/test",
            "id": "p1",
            "reason": "empty",
            "message": "fr/p1.flac: the file has no bytes; copy or record it again",
        }
    ]


def test_of_a_finished_build_only_card_and_record_are_written_again(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(corpus, out)
    before = content(out)
    (out / "build.json").unlink()
    (out / "README.md").unlink()
    monkeypatch.setattr(parallel_prompts, "encode_recordings", None)  # nothing is encoded
    build(corpus, out)
    assert content(out) == before
    build(corpus, out, audio_tokenizer=out / "audio_tokenizer")  # the same, named
    for changes, named in (
        ({"seed": 1}, "audio_tokenizer"),
        ({"keep_audio": False}, "max_rows_per_shard, keep_audio"),
        ({"speakers": {"en": "Bea", "fr": "Zoé"}}, "recordings"),
    ):
        with pytest.raises(FileExistsError, match=rf"'en-fr' already, made with other {named}"):
            build(corpus, out, **changes)
    assert content(out)[1] == before[1]


def test_overwritten_it_is_made_anew(corpus, tmp_path):
    out = tmp_path / "out"
    first = build(corpus, out)
    second = build(corpus, out, overwrite=True, seed=1, keep_audio=False)
    assert second.audio_tokenizer != first.audio_tokenizer
    assert "audio_en" not in next(read_rows(out, "test", "en-fr"))
    assert "as text and discrete speech units" in (out / "README.md").read_text()


def test_a_further_pair_shares_the_tokenizer(corpus, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "out"
    first = build(corpus, out)
    second = build(corpus, out, ("en", "de"), speakers={"en": "Ann", "de": "Ann"})
    assert second.audio_tokenizer == first.audio_tokenizer
    assert second.languages == ["en", "fr", "de"] and list(second.splits) == ["en-fr", "en-de"]
    assert second.units["en"] == 2 * first.units["en"]
    assert [voice["speaker"] for voice in second.voices] == ["Ann", "Zoé"]
    assert second.voices[0]["rows"] == 8 and list(second.voices[0]["voices"]) == ["en", "de"]
    rows = load_dataset(str(out), "en-de", split="test", cache_dir=str(tmp_path / "cache"))
    assert rows["speaker"][:] == ["Ann"] * 4
    card = (out / "README.md").read_text()
    assert "| en-fr | test | 4 |" in card and "| en-de | test | 4 |" in card
    assert (
        "| `units_en` | `List(List(uint16))` | units: a list with one list of ids, that of the sentence |"
        in card
    )
    assert "that of the sentence (config `en-de` only) |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": None}, "a config is a pair of languages, but .* holds en, fr, de"),
        ({"command": "python x.py --source /work/prompts"}, "command holds the path '/work/prompts'"),
        ({"limits": ["see ~/notes"]}, "limits holds the path"),
        ({"max_rows_per_shard": 0}, "max_rows_per_shard must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(corpus, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_builds_at_once_are_one_too_many(corpus, tmp_path):
    with lock(tmp_path / "out"), pytest.raises(RuntimeError, match="another build is at work"):
        build(corpus, tmp_path / "out")
