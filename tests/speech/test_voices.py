"""Which voices are kept, what stands beside their cosines, and what is written."""

import json
import logging

import matplotlib.image
import numpy as np
import pytest
import torch

from hf_clsi.speech import voices
from hf_clsi.speech.audio import write_audio
from hf_clsi.speech.synthesis import EspeakEngine, SynthesisEngine, SynthesisRequest, SynthesisWorker
from hf_clsi.speech.verifiers import SpeechVerifier, XVectorVerifier, embed_speech, load_verifier
from hf_clsi.speech.voices import VoiceTable, compare_recordings, compare_voices, default_texts, draw_table
from hf_clsi.text.stories import Holdout, draw_stories, tell


class VectorWorker(SynthesisWorker):
    def __init__(self, sounds):
        self.sounds = sounds

    def synthesize(self, requests):
        return [np.array(self.sounds[request.voice, request.text], np.float32) for request in requests]

    def close(self):
        pass


class VectorEngine(SynthesisEngine):
    """Speaks vectors: {(speaker, language): vector}, or a list of them, one for each sentence of `TEXTS`."""

    name, licence, sampling_rate_hz, version = "vectors", "CC0-1.0", 1_000, "7"

    def __init__(self, sounds):
        self.voices = {key: "/".join(key) for key in sounds}
        self.opened = 0
        self.sounds = {}
        for key, sound in sounds.items():
            each = sound if isinstance(sound[0], list) else [sound] * 2
            self.sounds |= {("/".join(key), text): vector for text, vector in zip("ab", each, strict=True)}

    def open_worker(self):
        self.opened += 1
        return VectorWorker(self.sounds)

    def voice_for(self, language, speaker=""):
        if (speaker, language) not in self.voices:
            raise ValueError(f"{speaker} does not speak {language}")
        return self.voices[speaker, language]

    def settings(self):
        return {"loud": True}


class Identity(SpeechVerifier):
    """The vector itself."""

    name, sampling_rate_hz, min_samples = "identity", 1_000, 2

    def embed(self, waveforms):
        return np.stack(waveforms)


TEXTS = {"en": ["a", "b"], "fr": ["a", "b"], "de": ["a", "b"]}
# Cosines of halves are exact: (1, 1, 1, 1) has length 2.
ONE, ALL, HALF = [1.0, 0, 0, 0], [1.0, 1, 1, 1], [1.0, 1, 0, 0]


def compare(sounds, languages=("en", "fr"), texts=TEXTS, **settings):
    speakers = list(dict.fromkeys(speaker for speaker, _ in sounds))
    settings = {"num_processes": 1, "progress": False, **settings}
    return compare_voices(VectorEngine(sounds), speakers, languages, Identity(), texts, **settings)


FOUR = {
    ("same", "en"): ONE, ("same", "fr"): [2.0, 0, 0, 0],
    ("near", "en"): ONE, ("near", "fr"): HALF,
    ("half", "en"): ONE, ("half", "fr"): ALL,
    ("far", "en"): ONE, ("far", "fr"): [0, 0, 0, 3.0],
}  # fmt: skip


# -- what is kept --------------------------------------------------------------------------------------------


def test_kept_are_exactly_those_above_the_threshold_best_first():
    table = compare(FOUR, threshold=0.6)
    assert [row.speaker for row in table.rows] == ["same", "near", "half", "far"]
    assert [row.cosine for row in table.rows] == pytest.approx([1, np.sqrt(0.5), 0.5, 0])
    assert [row.kept for row in table.rows] == [True, True, False, False]
    assert table.kept == ["same", "near"]


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, False), (np.nextafter(0.5, 0), True)])
def test_a_cosine_at_the_threshold_is_not_above_it(threshold, kept):
    (row,) = compare({("half", "en"): ONE, ("half", "fr"): ALL}, threshold=float(threshold)).rows
    assert row.cosine == 0.5
    assert row.kept is kept


def test_a_voice_is_the_mean_of_its_unit_embeddings():
    """The loud sentence of the two counts no more than the other."""
    (row,) = compare({("x", "en"): [[10.0, 0], [0, 0.1]], ("x", "fr"): [1.0, 0]}).rows
    assert row.cosine == pytest.approx(np.sqrt(0.5))


def test_the_order_of_languages_does_not_matter():
    forth, back = compare(FOUR), compare(FOUR, languages=("fr", "en"))
    assert [(row.speaker, row.cosine, row.closest) for row in forth.rows] == [
        (row.speaker, row.cosine, row.closest) for row in back.rows
    ]
    assert forth.yardsticks["other_speakers"] == back.yardsticks["other_speakers"]


def test_of_three_languages_the_two_furthest_apart_decide():
    sounds = {("x", "en"): [1.0, 0], ("x", "fr"): [3.0, 4.0], ("x", "de"): [4.0, 3.0]}
    (row,) = compare(sounds, languages=("en", "fr", "de"), threshold=0.7).rows
    assert row.pairs == pytest.approx({"en-fr": 0.6, "en-de": 0.8, "fr-de": 0.96})
    assert row.cosine == row.pairs["en-fr"]
    assert not row.kept


def test_no_voice_kept_is_said_and_written(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        table = compare({("half", "en"): ONE, ("half", "fr"): ALL})
    assert table.kept == []
    said = "0 of 1 voices kept: cosine of en and fr above 0.9 (identity); the highest is 0.5000 (half)"
    assert [record.getMessage() for record in caplog.records] == [f"no voice is kept: {said}"]
    table.save(tmp_path)
    assert said in (tmp_path / "voices.md").read_text()


def test_a_row_says_who_spoke_and_under_which_licence():
    table = compare(FOUR)
    row = table.rows[0]
    assert row.voices == {"en": "same/en", "fr": "same/fr"}
    assert row.licences == {"en": "CC0-1.0", "fr": "CC0-1.0"}
    assert row.n == {"en": 2, "fr": 2}
    assert table.settings == {
        "verifier": "identity", "source": "synthesis", "engine": "vectors", "engine_version": "7",
        "engine_settings": {"loud": True}, "sentences": {"en": 2, "fr": 2}, "seed": 0,
        "bootstrap_samples": 2000,
    }  # fmt: skip


def test_engines_may_have_a_licence_for_each_voice(monkeypatch):
    monkeypatch.setattr(VectorEngine, "voice_licence", lambda self, voice: f"of {voice}")
    assert compare(FOUR).rows[0].licences == {"en": "of same/en", "fr": "of same/fr"}


# -- yardsticks ----------------------------------------------------------------------------------------------


def test_floor_and_passing_pairs_are_of_other_speakers_in_other_languages():
    # en: x 0°, y 60°; fr: x 60°, y 0°. Each speaker's French is the other one's English.
    at_60 = [0.5, float(np.sqrt(0.75))]
    sounds = {("x", "en"): [1.0, 0], ("x", "fr"): at_60, ("y", "en"): at_60, ("y", "fr"): [1.0, 0]}
    table = compare(sounds)
    assert [row.cosine for row in table.rows] == pytest.approx([0.5, 0.5])
    assert [row.closest for row in table.rows] == [("y", pytest.approx(1)), ("x", pytest.approx(1))]
    assert table.yardsticks["other_speakers"] == pytest.approx({"mean": 1, "min": 1, "max": 1, "n": 2})
    assert table.yardsticks["other_speakers_same_language"] == pytest.approx(
        {"mean": 0.5, "min": 0.5, "max": 0.5, "n": 2}
    )
    assert table.yardsticks["passing"] == {"count": 2, "n": 2}
    assert table.yardsticks["equal_error"]["rate"] == 1.0  # whoever is let in, it is the other one


def test_the_ceiling_is_the_cosine_of_two_halves():
    sounds = {("x", "en"): [1.0, 0], ("x", "fr"): [[3.0, 4.0], [4.0, 3.0]]}
    table = compare(sounds)
    assert table.rows[0].halves == pytest.approx({"en": 1, "fr": 0.96})
    assert table.yardsticks["same_language"] == pytest.approx({"mean": 0.98, "min": 0.96, "max": 1, "n": 2})


def test_one_speaker_has_nobody_to_be_mistaken_for(tmp_path):
    table = compare({("x", "en"): ONE, ("x", "fr"): ALL})
    assert table.rows[0].closest is None
    others = ("other_speakers", "other_speakers_same_language", "passing", "equal_error")
    assert [table.yardsticks[key] for key in others] == [None] * 4
    table.save(tmp_path)
    assert "| other voice, other language (floor) | – | – | – | 0 |" in (tmp_path / "voices.md").read_text()


def test_equal_error():
    """At 0.3 one of three voices is lost (0.3 itself) and one of four others let in (0.7)."""
    found = voices._equal_error(np.array([0.9, 0.3, 0.8]), np.array([0.1, 0.7, 0.2, 0.0]))
    assert found == pytest.approx({"threshold": 0.3, "rate": (1 / 3 + 1 / 4) / 2})


def test_equal_error_of_speakers_told_apart_is_zero():
    found = voices._equal_error(np.array([0.9, 0.8]), np.array([0.1, 0.7]))
    assert found == {"threshold": 0.7, "rate": 0.0}


# -- intervals -----------------------------------------------------------------------------------------------


def test_intervals_cover_what_other_sentences_give():
    """In 256 dimensions, with noise as large as the voice, plain percentiles miss nine times in ten."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=256)
    truth = np.stack([center + 0.35 * rng.normal(size=256) for _ in range(2)])

    def draw():
        clips = truth[:, None] + 1.0 * rng.normal(size=(2, 12, 256))
        return clips / np.linalg.norm(clips, axis=-1, keepdims=True)

    def cosine_of(clips):
        first, second = clips.mean(axis=1)
        return first @ second / np.linalg.norm(first) / np.linalg.norm(second)

    expected = np.mean([cosine_of(draw()) for _ in range(500)])
    covered = []
    for _ in range(40):
        clips = draw()
        low, high = voices._interval(cosine_of(clips), list(clips), rng)
        assert low <= cosine_of(clips) <= high
        covered.append(low <= expected <= high)
    assert np.mean(covered) >= 0.9


def test_an_interval_depends_on_the_seed_and_on_nobody_else():
    noisy = {("x", "en"): [[1.0, 0], [0.8, 0.6]], ("x", "fr"): [[1.0, 0.1], [0.2, 0.6]]}
    (alone,) = compare(noisy).rows
    assert compare(noisy).rows == (alone,)
    assert alone.ci95[0] < alone.cosine < alone.ci95[1]
    (other,) = compare(noisy, seed=1).rows
    assert other.cosine == alone.cosine
    assert other.ci95 != alone.ci95
    beside = compare({("y", "en"): [1.0, 0], ("y", "fr"): [1.0, 0], **noisy})
    (row,) = [row for row in beside.rows if row.speaker == "x"]
    assert (row.cosine, row.ci95, row.halves) == (alone.cosine, alone.ci95, alone.halves)


def test_equal_sentences_leave_nothing_open():
    (row,) = compare({("x", "en"): ONE, ("x", "fr"): ALL}).rows
    assert row.ci95 == pytest.approx((0.5, 0.5))


# -- sentences and errors ------------------------------------------------------------------------------------


def test_default_sentences_tell_the_same_in_every_language():
    texts = default_texts(("en", "fr"), 6, seed=3)
    assert {language: len(each) for language, each in texts.items()} == {"en": 6, "fr": 6}
    assert default_texts(("fr",), 6, seed=3)["fr"] == texts["fr"]
    assert default_texts(("en",), 6, seed=4)["en"] != texts["en"]
    assert len(set(texts["en"])) == len(set(texts["fr"])) == 6
    # From the opening to the ending and again, each of another story.
    stories = [tell(plan, "en") for plan in draw_stories(6, "train", Holdout(seed=0), 3)]
    assert [story.index(text) for story, text in zip(stories, texts["en"], strict=True)] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ("en",)}, r"languages: at least 2 needed, got \['en'\]"),
        ({"languages": "en"}, "languages is one string"),
        ({"languages": ("en", "en")}, "languages repeat: en"),
        ({"speakers": []}, "speakers: at least 1 needed"),
        ({"speakers": ["same", "same"]}, "speakers repeat: same"),
        ({"texts": {"en": ["a", "b"], "fr": ["a"]}}, "texts has 1 sentences in 'fr'; at least two"),
        ({"texts": {"en": ["a", "b"]}}, "texts has 0 sentences in 'fr'"),
        ({"texts": {"en": "ab", "fr": ["a", "b"]}}, "texts has one string, no list of sentences in 'en'"),
        ({"languages": ("en", "xx"), "texts": None}, "does not tell stories in 'xx', only in de, en, fr"),
        ({"threshold": 90}, "threshold is a cosine, from -1 to 1; got 90"),
        (
            {"languages": ("en", "de")},
            r"vectors has no voice for same in 'de': same does not speak de; near .* \(and 1 more\); leave",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_spoken(changes, message):
    engine = VectorEngine(FOUR)
    arguments = {"speakers": ["same", "near", "half", "far"], "languages": ("en", "fr"), "texts": TEXTS}
    with pytest.raises(ValueError, match=message):
        compare_voices(engine, verifier=Identity(), progress=False, **(arguments | changes))
    assert engine.opened == 0


# -- files ---------------------------------------------------------------------------------------------------


def test_a_saved_table_reads_back_equal(tmp_path):
    table = compare(FOUR, threshold=0.6)
    paths = table.save(tmp_path / "new" / "voices")
    assert [path.name for path in paths] == ["voices.json", "voices.md", "voices.png"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)
    assert VoiceTable.load(paths[0]) == VoiceTable.load(paths[0].parent) == table
    assert json.loads(paths[0].read_text())["kept"] == ["same", "near"]


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = compare(FOUR)
    first = [path.read_bytes() for path in table.save(tmp_path)]
    assert [path.read_bytes() for path in VoiceTable.load(tmp_path).save(tmp_path)] == first


def test_markdown_lists_every_voice_with_its_numbers(tmp_path):
    lines = compare(FOUR, threshold=0.6).to_markdown().splitlines()
    assert lines[2] == "2 of 4 voices kept: cosine of en and fr above 0.6 (identity)."
    rows = [line for line in lines if "CC0-1.0" in line]
    assert rows[0] == (
        "| same | same/en | same/fr | CC0-1.0 | 2+2 | 1.0000 | 1.0000–1.0000 | 1.0000 | 1.0000 "
        "| near 1.0000 | yes |"
    )
    assert [row.split(" | ")[0] for row in rows] == ["| same", "| near", "| half", "| far"]
    assert [row.endswith("| yes |") for row in rows] == [True, True, False, False]
    head = next(line for line in lines if line.startswith("| speaker"))
    assert {line.count(" | ") for line in (head, *rows)} == {10}


@pytest.mark.parametrize("content", ["{}", "not json", '{"voices": [{"speaker": "x"}]}'])
def test_another_file_is_no_table(tmp_path, content):
    (tmp_path / "voices.json").write_text(content)
    with pytest.raises(ValueError, match="is no voice table"):
        VoiceTable.load(tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"voices\.json: no such file"):
        VoiceTable.load(tmp_path)


def test_the_picture_has_a_dot_for_every_voice_and_the_threshold(tmp_path):
    table = compare(FOUR, threshold=0.6)
    (axes,) = draw_table(table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["same", "near", "half", "far"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [row.cosine for row in table.rows]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True, True]
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_xdata() == [0.6, 0.6]
    low, high = axes.get_ylim()
    assert low > high  # best on top
    table.save(tmp_path)
    height, width, _ = matplotlib.image.imread(tmp_path / "voices.png").shape
    assert width == 1040
    assert height > 400


def test_many_voices_share_one_page():
    sounds = {(f"s{i:03}", language): ONE for i in range(120) for language in ("en", "fr")}
    figure = draw_table(compare(sounds))
    assert figure.get_size_inches()[1] < 15
    assert figure.axes[0].get_ylabel() == "120 voices"


# -- recordings ----------------------------------------------------------------------------------------------


def recordings_in(folder, languages=("en", "fr"), speakers=("x", "y"), clips=3):
    """One second of noise, colored by speaker, in files; -> {speaker: {language: paths}}."""
    rng = np.random.default_rng(0)
    found = {}
    for place, speaker in enumerate(speakers):
        for language in languages:
            for clip in range(clips):
                wave = rng.normal(size=16_000)
                wave = np.cumsum(wave) - np.cumsum(wave).mean() if place else wave
                path = folder / f"{speaker}-{language}-{clip}.wav"
                write_audio(path, (0.5 * wave / np.abs(wave).max()).astype(np.float32), 16_000)
                found.setdefault(speaker, {}).setdefault(language, []).append(path)
    return found


def test_recordings_make_the_same_table(tmp_path):
    verifier = load_verifier("spectral")
    recordings = recordings_in(tmp_path)
    table = compare_recordings(recordings, verifier, licences={"x": "CC-BY-4.0"}, progress=False)
    assert table.kept == [row.speaker for row in table.rows]
    assert table.yardsticks["passing"] == {"count": 0, "n": 2}
    assert {row.speaker: row.licences["fr"] for row in table.rows} == {"x": "CC-BY-4.0", "y": "unknown"}
    assert table.settings["source"] == "recordings"
    assert "voice en" not in table.to_markdown()


def test_unusable_recordings_are_left_out_and_counted(tmp_path):
    recordings = recordings_in(tmp_path)
    write_audio(recordings["x"]["en"][0], np.full(15_999, 0.1, np.float32), 16_000)
    recordings["y"]["fr"].append(tmp_path / "nowhere.wav")
    write_audio(tmp_path / "mute.wav", np.zeros(16_000, np.float32), 16_000)
    recordings["y"]["fr"].append(tmp_path / "mute.wav")
    table = compare_recordings(recordings, load_verifier("spectral"), progress=False)
    assert {row.speaker: dict(row.n) for row in table.rows} == {
        "x": {"en": 2, "fr": 3},
        "y": {"en": 3, "fr": 3},
    }
    assert table.dropped.counts() == {"missing": 1, "silent": 1, "too_short": 1}
    table.save(tmp_path / "table")
    assert VoiceTable.load(tmp_path / "table") == table
    assert "Recordings left out: 3 (missing 1, silent 1, too_short 1)" in table.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["x"].pop("fr"), r"languages of x: at least 2 needed"),
        (lambda found: found["y"].pop("fr"), "y has recordings in en, x in en, fr; all speakers need"),
        (lambda found: found.clear(), "speakers: at least 1 needed"),
        (
            lambda found: found["x"]["en"].clear(),
            r"x has 0 usable clip\(s\) in 'en', at least two are needed",
        ),
        (lambda found: found["y"].update(en="y.wav"), "recordings of y in 'en' are one path; give a list"),
    ],
)
def test_too_few_recordings_are_refused(tmp_path, change, message):
    recordings = recordings_in(tmp_path)
    change(recordings)
    with pytest.raises(ValueError, match=message):
        compare_recordings(recordings, load_verifier("spectral"), progress=False)


# -- real speech ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def espeak_table():
    return compare_voices(
        EspeakEngine(), ("f3", "m3", "m8"), ("en", "fr"), load_verifier("spectral"),
        default_texts(("en", "fr"), 4), progress=False,
    )  # fmt: skip


def test_speakers_of_espeak_are_more_like_themselves_than_like_each_other(espeak_table):
    assert all(row.cosine > row.closest[1] for row in espeak_table.rows)
    assert espeak_table.rows[0].voices["fr"].startswith("fr+")
    assert espeak_table.settings["engine"] == "espeak-ng"


def test_more_workers_and_smaller_portions_change_nothing(espeak_table, monkeypatch):
    portions = []

    def embed(clips, *arguments):
        portions.append(len(clips))
        return embed_speech(clips, *arguments)

    monkeypatch.setattr(voices, "PORTION_CLIPS", 5)
    monkeypatch.setattr(voices, "embed_speech", embed)
    table = compare_voices(
        EspeakEngine(), ("f3", "m3", "m8"), ("en", "fr"), load_verifier("spectral"),
        default_texts(("en", "fr"), 4), progress=False, num_processes=3,
    )  # fmt: skip
    assert table == espeak_table
    assert portions == [5, 5, 5, 5, 4]


def test_an_x_vector_model_from_speech_to_table():
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, tdnn_dim=(16, 16, 16, 16, 24),
        xvector_output_dim=12,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WavLMForXVector(config)
    verifier = XVectorVerifier(model, Wav2Vec2FeatureExtractor(sampling_rate=16_000), "tiny-random")
    engine, texts = (
        EspeakEngine(),
        {"en": ["The cat sleeps.", "It rains."], "fr": ["Le chat dort.", "Il pleut."]},
    )
    table = compare_voices(engine, ("f3", "m3"), ("en", "fr"), verifier, texts, progress=False)
    assert table.settings["verifier_class"] == "WavLMForXVector"
    for row in table.rows:
        means = []
        for language in ("en", "fr"):
            requests = [SynthesisRequest(text, row.voices[language]) for text in texts[language]]
            clips = [engine.synthesize(request.text, request.voice) for request in requests]
            means.append(embed_speech(clips, engine.sampling_rate_hz, verifier).mean(axis=0))
        first, second = means
        assert row.cosine == pytest.approx(
            first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-5
        )
