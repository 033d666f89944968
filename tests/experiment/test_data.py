"""Text to Parquet: what is spoken, what is learned from what, and how the rows say so."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from hf_clsi.experiment import data
from hf_clsi.experiment.data import Reader, SpokenText, Told, build_data, write_texts
from hf_clsi.experiment.presets import preset
from hf_clsi.modeling_clsi_units import ClsiUnitsModel
from hf_clsi.rows.shards import read_rows
from hf_clsi.text.languages import language
from hf_clsi.text.stories import Holdout, StoryPlan
from hf_clsi.units.merges import UnitMerges

CHANGES = {
    "train_stories": 48,
    "dev_stories": 4,
    "items": 12,
    "units.config.num_units": 16,
    "units.config.hop_length": 1280,
    "units.num_merges": 30,
    "units.fit_sentences": 40,
    "units.merge_sentences": 100,
    "speech.speakers": ["m3", "f3"],
    "speech.rate_wpm": 200,
    "speech.reading": "phrases",
    "speech.pause_s": 0.08,
}
PLAN = StoryPlan(
    topic="farm", character="cat", friend="dog", object=0, place=0, action=0, time=0, opening=0, desire=0,
    problem=0, success=True, turn=0, turn_frame=0, ending=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings():
    return preset("tiny", CHANGES)


@pytest.fixture(scope="module")
def built(tmp_path_factory, settings):
    """Data on disk, and what the tokenizer, the merges and the encoder were given on the way."""
    folder = tmp_path_factory.mktemp("experiment")
    seen = {"fit": [], "merges": [], "spoken": None}
    fit_units, learn, encode, speak = data.fit_units, UnitMerges.learn, SpokenText.encode, Reader.speak
    fitting = []

    def fit_spy(*arguments, **options):
        fitting.append(True)
        try:
            return fit_units(*arguments, **options)
        finally:
            fitting.clear()

    def speak_spy(self, sentence):
        if fitting:
            seen["fit"].append(sentence)
        return speak(self, sentence)

    def learn_spy(sequences, *arguments, **options):
        seen["merges"] = list(sequences)
        return learn(sequences, *arguments, **options)

    def encode_spy(self, *arguments, **options):
        seen["spoken"] = self
        return encode(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "fit_units", fit_spy)
        patch.setattr(Reader, "speak", speak_spy)
        patch.setattr(UnitMerges, "learn", learn_spy)
        patch.setattr(SpokenText, "encode", encode_spy)
        seen["summary"] = build_data(settings, folder, seed=3, split="test", num_processes=2, progress=False)
    return folder, seen


def _sentences(spoken, stories):
    return {
        sentence
        for story in stories
        for code in ("en", "fr")
        for sentence in spoken.reader.sentences(code, story)
    }


def test_units_and_merges_are_fitted_on_training_speech_only(built, settings):
    _, seen = built
    spoken, texts = seen["spoken"], write_texts(settings, 3, "test")
    training = _sentences(spoken, texts.train)
    others = set(spoken.units) - training
    assert len(others) > 150  # there is speech that they could have seen
    assert len(set(seen["fit"])) == 40
    assert set(seen["fit"]) <= training
    sentence_of = {id(units): sentence for sentence, units in spoken.units.items()}
    learned = [sentence_of[id(units)] for units in seen["merges"]]
    assert len(set(learned)) == 100
    assert set(learned) <= training


def test_every_distinct_sentence_is_encoded_and_its_waveform_dropped(built, settings):
    _, seen = built
    spoken = seen["spoken"]
    assert set(spoken.units) == _sentences(spoken, write_texts(settings, 3, "test").stories())
    assert seen["summary"]["distinct_sentences"] == len(spoken.units)
    assert spoken.reader._clips == {}


def _heard(text, topic, code):
    """(topic, object, character) for every character and object of the topic that a text names."""
    words = language(code)
    text = text.lower()

    def named(word):
        return re.search(rf"\b{re.escape(word.lower())}\b", text) is not None

    characters = [
        key
        for key, character in words.characters.items()
        if named(re.sub(r"^(the |le |la |l')", "", character.name))
    ]
    objects = [i for i, noun in enumerate(words.topics[topic].objects) if named(noun.singular)]
    return {(topic, thing, character) for thing in objects for character in characters}


@pytest.mark.parametrize("code", ["en", "fr"])
def test_no_held_out_pair_is_in_the_text_of_a_training_row(built, code):
    """Read from the rows as they are on disk, not from the plans behind them."""
    folder, _ = built
    trained = set()
    for row in read_rows(folder / "data" / "stories", "train"):
        trained |= _heard(" ".join(row[f"text_{code}"]), row["topic"], code)
    pairs = Counter()
    for task in ("topiccloze", "storycloze"):
        for row in read_rows(folder / "data" / f"spoken-{task}", "test", config=code):
            told = _heard(row["correct_text"], row["topic"], code)
            assert len(told) == 1, row["correct_text"]  # every ending names its character and its object
            pairs[row["holdout"], *told] += 1
    strict = {pair for (rule, pair) in pairs if rule == "strict"}
    assert len(strict) >= 10
    assert len(trained) >= 48
    assert strict & trained == set()
    # So few pairs out of 3,456 could miss each other by luck; that each lies in its own part could not.
    holdout = Holdout(seed=3)
    assert {holdout.split_of_pair((topic, thing, name)) for topic, thing, name in trained} == {"train"}
    assert {holdout.split_of_pair((topic, thing, name)) for topic, thing, name in strict} == {"test"}


def test_train_and_validation_are_stories_aligned_by_sentence(built):
    folder, _ = built
    for split, number in (("train", 48), ("validation", 4)):
        rows = list(read_rows(folder / "data" / "stories", split))
        assert [row["story_id"] for row in rows] == [f"{split}-{i:06d}" for i in range(number)]
        for row in rows:
            for code in ("en", "fr"):
                assert len(row[f"units_{code}"]) == len(row[f"text_{code}"]) == 5
                assert all(units.dtype == np.uint16 and units.max() < 16 for units in row[f"units_{code}"])


def test_a_cloze_item_is_the_same_in_every_direction(built):
    folder, _ = built
    configs = {"en": ("en", "en"), "fr": ("fr", "fr"), "en-fr": ("en", "fr"), "fr-en": ("fr", "en")}
    rows = {
        config: {
            row["id"]: row for row in read_rows(folder / "data" / "spoken-topiccloze", "test", config=config)
        }
        for config in configs
    }
    assert all(len(table) == 24 for table in rows.values())  # 12 items under each of two rules
    for item, row in rows["en-fr"].items():
        assert (row["prompt_language"], row["ending_language"]) == configs["en-fr"]
        prompt, ending = rows["en"][item], rows["fr"][item]
        assert row["prompt_text"] == prompt["prompt_text"]
        assert (row["correct_text"], row["negative_text"]) == (
            ending["correct_text"],
            ending["negative_text"],
        )
        for units, same in zip(row["prompt_units"], prompt["prompt_units"], strict=True):
            assert units.tolist() == same.tolist()
        assert row["correct_units"].tolist() == ending["correct_units"].tolist()
        assert row["negative_units"].tolist() == ending["negative_units"].tolist()
        for key in ("pair_id", "speaker", "holdout", "topic", "negative_topic"):
            assert {table[item][key] for table in rows.values()} == {row[key]}


def test_a_pair_swaps_its_endings_and_keeps_its_speaker(built):
    folder, _ = built
    pairs = {}
    for row in read_rows(folder / "data" / "spoken-storycloze", "test", config="en-fr"):
        pairs.setdefault(row["pair_id"], []).append(row)
    assert len(pairs) == 12
    for a, b in pairs.values():
        assert (a["correct_text"], a["negative_text"]) == (b["negative_text"], b["correct_text"])
        assert a["correct_units"].tolist() == b["negative_units"].tolist()
        assert a["prompt_text"] != b["prompt_text"]
        assert a["speaker"] == b["speaker"]
    assert {rows[0]["speaker"] for rows in pairs.values()} == {"m3", "f3"}


def test_rows_say_how_they_were_made(built):
    folder, seen = built
    made = {
        "engine": "espeak-ng",
        "licence": "GPL-3.0-or-later",
        "rate_wpm": 200,
        "reading": "phrases",
        "pause_s": 0.08,
        "seed": 3,
        "audio_tokenizer": f"hf_clsi embedded, sha256 {seen['summary']['codebook_digest']}",
    }
    story = next(iter(read_rows(folder / "data" / "stories", "train")))
    item = next(iter(read_rows(folder / "data" / "spoken-topiccloze", "test", config="en-fr")))
    for row in (story, item):
        assert {key: row[key] for key in made} == made
    assert (story["voice_en"], story["voice_fr"]) == (f"en-us+{story['speaker']}", f"fr+{story['speaker']}")
    assert (item["prompt_voice"], item["ending_voice"]) == (
        f"en-us+{item['speaker']}",
        f"fr+{item['speaker']}",
    )


@pytest.mark.parametrize("name", ["stories", "spoken-topiccloze", "spoken-storycloze"])
def test_the_card_says_engine_reading_and_licence(built, name):
    card = (built[0] / "data" / name / "README.md").read_text()
    assert "Engine: espeak-ng 1.5" in card
    for speaker in ("m3", "f3"):
        assert f"| {speaker} | en-us+{speaker} | fr+{speaker} | GPL-3.0-or-later |" in card
    assert "every phrase an utterance of its own" in card
    assert "pause of at least 0.08 s that ends on a whole frame" in card
    assert "does not extend to the speech" in card
    digest = built[1]["summary"]["codebook_digest"]
    assert f"Audio tokenizer: hf_clsi embedded, sha256 {digest}; fitted" in card
    # The preset was changed, and a command line that does not say so would make something else.
    assert "hf-clsi reproduce" not in card


def test_the_card_counts_what_the_rows_hold(built):
    folder, names = built[0] / "data", ("en", "fr")
    card = (folder / "stories/README.md").read_text()
    for split, rows in (("train", 48), ("validation", 4)):
        units = dict.fromkeys(names, 0)
        for row in read_rows(folder / "stories", split):
            for code in names:
                units[code] += sum(map(len, row[f"units_{code}"]))
        minutes = [f"{units[code] / 12.5 / 60:,.1f}" for code in names]
        counts = " | ".join([str(rows), *minutes, *(f"{units[code]:,}" for code in names)])
        assert f"| default | {split} | {counts} |" in card
    card = (folder / "spoken-topiccloze/README.md").read_text()
    en = fr = 0
    for row in read_rows(folder / "spoken-topiccloze", "test", config="en-fr"):
        en += sum(map(len, row["prompt_units"]))
        fr += len(row["correct_units"]) + len(row["negative_units"])
    minutes = [f"{count / 12.5 / 60:,.1f}" for count in (en, fr)]
    assert f"| en-fr | test | 24 | {minutes[0]} | {minutes[1]} | {en:,} | {fr:,} |" in card
    assert "| en | test | 24 |" in card and "| fr-en | test | 24 |" in card


def test_the_summary_counts_what_is_there(built):
    folder, seen = built
    summary = seen["summary"]
    assert (summary["train_stories"], summary["validation_stories"]) == (48, 4)
    assert (summary["num_units"], summary["frame_rate_hz"]) == (16, 12.5)
    assert 0 < summary["num_merges"] <= 30
    assert summary["voices"] == {"en": ["en-us+m3", "en-us+f3"], "fr": ["fr+m3", "fr+f3"]}
    assert summary["tokens_per_sentence"] < summary["units_per_sentence"]["en"]
    saved = json.loads((folder / "data" / "build.json").read_text())
    assert saved["summary"] == summary
    assert saved["seconds"] > 0


def test_the_tokenizer_on_disk_is_the_one_that_made_the_units(built, settings):
    folder, seen = built
    tokenizer = ClsiUnitsModel.from_pretrained(folder / "audio_tokenizer").eval()
    assert tokenizer.codebook_digest() == seen["summary"]["codebook_digest"]
    old, sentence = seen["spoken"], ("en", "f3", ("One day", "the cat", "was on the farm"))
    again = SpokenText(_reader(settings, seed=3), tokenizer)
    known = next(key for key in old.units if key[0] == "fr")
    again.encode([known, sentence], num_threads=1, progress=False)
    assert again.units[known].tolist() == old.units[known].tolist()
    assert UnitMerges.load(folder / "audio_tokenizer").num_merges == seen["summary"]["num_merges"]


def test_units_do_not_depend_on_the_number_of_threads(built, settings, monkeypatch):
    _, seen = built
    monkeypatch.setattr(data, "_PORTION", 7)
    some = list(seen["spoken"].units)[:40]
    found = []
    for threads in (1, 3):
        spoken = SpokenText(_reader(settings, seed=3), seen["spoken"].tokenizer)
        spoken.encode(some, num_threads=threads, progress=False)
        assert spoken.reader._clips == {}
        found.append([spoken.units[sentence].tolist() for sentence in some])
    assert found[0] == found[1] == [seen["spoken"].units[sentence].tolist() for sentence in some]


def test_a_sentence_that_is_there_is_not_spoken_again(settings, built, monkeypatch):
    spoken = built[1]["spoken"]
    monkeypatch.setattr(data, "synthesize_many", lambda requests, *others: iter(()))
    before = dict(spoken.units)
    spoken.encode(list(before)[:5], num_threads=1, progress=False)
    assert spoken.units == before


def _reader(settings, seed=0):
    return Reader(settings, seed, sampling_rate_hz=16_000, hop_length=1280, num_processes=1)


def test_phrases_are_spoken_alone_and_end_on_a_whole_frame_after_a_pause(settings):
    reader = _reader(settings)
    sentences = reader.sentences("en", Told("m3", PLAN))
    assert sentences[0] == ("en", "m3", ("One day", "the cat", "was on the farm"))
    reader.prepare(sentences[:1])
    parts = [reader.speak(("en", "m3", (part,))) for part in sentences[0][2]]
    for clip in parts:
        assert clip.dtype == np.float32
        assert len(clip) % 1280 == 0
        assert np.abs(clip[-1280:]).max() == 0  # 80 ms of pause
        assert np.abs(clip).max() > 0.05
    assert np.array_equal(reader.speak(sentences[0]), np.concatenate(parts))


def test_sentences_are_spoken_in_one_go():
    reader = _reader(preset("tiny", {"speech.reading": "sentences", "speech.pause_s": 0.0}))
    (first, *_) = reader.sentences("fr", Told("m3", PLAN))
    assert first == ("fr", "m3", ("Un jour, le chat était à la ferme.",))
    reader.prepare([first])
    assert len(reader.speak(first)) % 1280 == 0


def test_equal_utterances_are_synthesized_once(settings, monkeypatch):
    asked = []
    synthesize = data.synthesize_many

    def spy(requests, *others):
        asked.extend(requests)
        return synthesize(requests, *others)

    monkeypatch.setattr(data, "synthesize_many", spy)
    reader = _reader(settings, seed=5)
    reader.prepare([("en", "m3", ("the cat", "the dog")), ("en", "m3", ("the dog", "the cat"))])
    reader.prepare([("en", "m3", ("the cat",)), ("en", "f3", ("the cat",))])
    assert [(each.voice, each.text, each.seed) for each in asked] == [
        ("en-us+m3", "the cat", 5),
        ("en-us+m3", "the dog", 5),
        ("en-us+f3", "the cat", 5),
    ]


def test_texts_depend_on_seed_and_split_only(settings):
    first = write_texts(settings, 0, "test")
    assert first == write_texts(settings, 0, "test")
    assert first.train != write_texts(settings, 1, "test").train
    tuned = write_texts(settings, 0, "dev")
    assert tuned.train == first.train
    assert {item.prompt.pair for _, item in tuned.items if item.holdout == "strict"}.isdisjoint(
        item.prompt.pair for _, item in first.items if item.holdout == "strict"
    )


# -- resuming ------------------------------------------------------------------------------------------------


@pytest.fixture
def builder(monkeypatch):
    """`_build` that only writes a file; counts its calls."""
    calls = []

    def fake(settings, folder, *others):
        calls.append(settings.train_stories)
        (folder / "data").mkdir(parents=True)  # fails where something was left
        (folder / "data" / "rows").write_text("whole")
        return {"train_stories": settings.train_stories}

    monkeypatch.setattr(data, "_build", fake)
    return calls


def _build_with(settings, folder, **changes):
    return build_data(
        settings, folder, **({"seed": 0, "split": "test", "num_processes": 1, "progress": False} | changes)
    )


def test_a_finished_build_is_kept_and_gives_the_same_summary(builder, settings, tmp_path):
    first = _build_with(settings, tmp_path)
    assert _build_with(settings, tmp_path, num_processes=2, progress=True) == first == {"train_stories": 48}
    assert builder == [48]


def test_a_build_that_was_cut_short_is_made_anew(builder, settings, tmp_path):
    for name in ("data", "audio_tokenizer"):  # no build.json: it never got to its end
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("a file")
    _build_with(settings, tmp_path)
    assert builder == [48]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["build.json", "rows"]
    assert not (tmp_path / "audio_tokenizer").exists()


def test_a_build_that_fails_leaves_no_mark_of_being_finished(settings, tmp_path, monkeypatch):
    def fail(settings, folder, *others):
        (folder / "data").mkdir()
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(data, "_build", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        _build_with(settings, tmp_path)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "dev"}])
def test_data_of_other_settings_are_replaced(builder, settings, tmp_path, change):
    _build_with(settings, tmp_path)
    _build_with(settings, tmp_path, **change)
    assert builder == [48, 48]
