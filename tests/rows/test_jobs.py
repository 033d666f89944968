"""The stages of a shard: workers that stay open, samples on the 16-bit grid, translation by sentence."""

import numpy as np
import pytest

from hf_clsi.rows.drafts import Clip, Draft, Side, cloze_draft, read_drafts, story_draft
from hf_clsi.rows.jobs import KeptWorkers, encode_clips, on_16_bit_grid, translate_drafts
from hf_clsi.speech.audio import encode_audio, read_audio
from hf_clsi.speech.synthesis import SynthesisRequest, synthesize_many
from hf_clsi.text.drops import Drops
from hf_clsi.text.translation import Translation
from hf_clsi.units.encode import encode_waveforms


class Worker:
    def __init__(self, events):
        self.events = events
        events.append("open")

    def synthesize(self, requests):
        if any(request.text == "bad" for request in requests):
            raise RuntimeError("cannot")
        return [np.full(4, 0.5, dtype=np.float32) for _ in requests]

    def close(self):
        self.events.append("close")


class Engine:
    name, sampling_rate_hz = "test", 16_000

    def __init__(self):
        self.events = []

    def open_worker(self):
        return Worker(self.events)


def test_workers_stay_open_from_call_to_call():
    engine = Engine()
    kept = KeptWorkers(engine)
    for _ in range(3):
        requests = [SynthesisRequest(f"text {i}", "v") for i in range(5)]
        assert len(list(synthesize_many(requests, kept, num_processes=1, progress=False))) == 5
    assert engine.events == ["open"]
    kept.close()
    assert engine.events == ["open", "close"]


def test_a_worker_that_failed_is_closed_and_not_used_again():
    engine = Engine()
    kept = KeptWorkers(engine)
    with pytest.raises(RuntimeError, match="cannot"):
        list(synthesize_many([SynthesisRequest("bad", "v")], kept, num_processes=1, progress=False))
    list(synthesize_many([SynthesisRequest("good", "v")], kept, num_processes=1, progress=False))
    assert engine.events[0] == "open" and "close" in engine.events and engine.events[-1] == "open"


def test_samples_on_the_16_bit_grid_survive_flac():
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-1.0, 1.0, 1000).astype(np.float32)
    stored = on_16_bit_grid(waveform)
    assert np.abs(stored - waveform).max() <= 1 / 32768
    again, _ = read_audio(encode_audio(stored, 16_000), None)
    assert np.array_equal(again, stored)
    assert np.array_equal(on_16_bit_grid(stored), stored)


def test_too_loud_is_scaled_down_and_nothing_else_is():
    loud = np.array([0.5, -2.0, 1.0], dtype=np.float32)
    np.testing.assert_allclose(on_16_bit_grid(loud), [0.25, -1.0, 0.5], atol=1e-4)
    assert loud[1] == -2.0  # the caller's is left alone
    assert on_16_bit_grid(np.array([0.25], dtype=np.float32))[0] == 0.25
    with pytest.raises(ValueError, match="NaN"):
        on_16_bit_grid(np.array([np.nan]))


def test_clips_get_the_units_of_their_own_waveform(tiny_mimi):
    tokenizer = tiny_mimi()
    rng = np.random.default_rng(0)
    waveforms = [rng.normal(0, 0.1, n).astype(np.float32) for n in (5_000, 24_000, 1_920)]
    clips = [Clip(waveform, 24_000, len(waveform)) for waveform in waveforms]
    encode_clips(clips, tokenizer)
    for clip, waveform in zip(clips, waveforms, strict=True):
        (alone,) = encode_waveforms([waveform], tokenizer, progress=False)
        assert np.array_equal(clip.units, alone)


class Reverse:
    """Translates "ab" into "ba"; stories with a "!" come back with a sentence too many."""

    def translate(self, stories, source_language, target_language, progress=False):
        assert (source_language, target_language) == ("en", "xx")
        done = []
        for story in stories:
            if story[0] == "?":
                done.append(Translation(None, "refused", "not that"))
            else:
                extra = ["more"] if story[0] == "!" else []
                done.append(Translation(tuple([text[::-1] for text in story] + extra)))
        return done


def test_translation_fills_the_languages_in_their_order():
    drafts = [
        story_draft("a", {"en": ["ab", "cd"]}),
        story_draft("b", {"en": ["!"]}),
        story_draft("c", {"en": ["?"]}),
    ]
    drops = Drops()
    (kept,) = translate_drafts(drafts, Reverse(), "en", ["xx", "en"], drops)
    assert list(kept.sides) == ["xx", "en"] and kept.sides["xx"].texts == ["ba", "dc"]
    assert [(drop.id, drop.reason) for drop in drops] == [("b", "wrong_sentence_count"), ("c", "refused")]


def test_what_is_there_is_not_translated():
    draft = story_draft("a", {"en": ["ab"], "xx": ["by hand"]})
    (kept,) = translate_drafts([draft], Reverse(), "en", ["en", "xx"], Drops())
    assert kept.sides["xx"].texts == ["by hand"]


def test_drafts_are_lines_of_json(tmp_path):
    drafts = [
        story_draft("s1", {"en": ["One é."], "fr": ["Un."]}, {"topic": "sea"}),
        cloze_draft("c1", {"en": ["A.", "B."]}, {"en": "C."}, {"en": "D."}),
        Draft(
            "p", "pair", {"correct": Side("en", ["x"], ["a.wav"]), "negative": Side("en", [""], [{"row": 3}])}
        ),
    ]
    file = tmp_path / "drafts.jsonl"
    file.write_text("".join(draft.to_json() + "\n" for draft in drafts), encoding="utf-8")
    assert list(read_drafts(file)) == drafts
    assert list(drafts[1].sides) == ["prompt_en", "correct_en", "negative_en"]
    with pytest.raises(ValueError, match="one recording a sentence, got 1 recordings and 2 sentences"):
        Side("en", ["a", "b"], ["a.wav"])
