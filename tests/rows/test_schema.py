"""Row kinds: what is accepted, what is refused (always by the row's id), and the Features of each kind."""

import copy

import numpy as np
import pytest

from hf_clsi.rows.schema import (
    check_row,
    cloze_columns,
    cloze_features,
    infer_columns,
    story_columns,
    story_features,
)


def story(**changes):
    row = {
        "story_id": "s1",
        "speaker": "alba",
        "units_en": [[5, 5, 9], [2]],
        "units_fr": [[7], [8, 8]],
        "text_en": ["A cat sat.", "It slept."],
        "text_fr": ["Un chat était assis.", "Il dormait."],
    }
    return row | changes


def cloze(**changes):
    row = {
        "id": "c1",
        "speaker": "alba",
        "prompt_language": "en",
        "ending_language": "fr",
        "prompt_units": [[1, 2], [3]],
        "correct_units": [4, 5],
        "negative_units": [6],
    }
    return row | changes


def test_story_columns_follow_the_contract():
    assert story_columns(["en", "fr"], audio=True, extra=["topic", "voice_fr"]) == {
        "story_id": "string",
        "speaker": "string",
        "units_en": "sentences",
        "units_fr": "sentences",
        "text_en": "texts",
        "text_fr": "texts",
        "audio_en": "audios",
        "audio_fr": "audios",
        "topic": "string",
        "voice_fr": "string",
    }


def test_cloze_columns_follow_the_contract():
    assert list(cloze_columns(text=True, audio=True)) == [
        "id",
        "speaker",
        "prompt_language",
        "ending_language",
        "prompt_text",
        "correct_text",
        "negative_text",
        "prompt_audio",
        "correct_audio",
        "negative_audio",
        "prompt_units",
        "correct_units",
        "negative_units",
    ]
    units_only = cloze_columns(text=False)
    assert list(units_only)[4:] == ["prompt_units", "correct_units", "negative_units"]
    assert units_only["prompt_units"] == "sentences"  # the borders of the prompt's sentences are kept
    assert units_only["correct_units"] == units_only["negative_units"] == "units"


def test_features_hold_uint16_and_never_decode_audio():
    from datasets import Audio, List, Value

    features = story_features(["en"], audio=True, extra={"note": "string"})
    assert features == {
        "story_id": Value("string"),
        "speaker": Value("string"),
        "units_en": List(List(Value("uint16"))),
        "text_en": List(Value("string")),
        "audio_en": List(Audio(decode=False)),
        "note": Value("string"),
    }
    assert cloze_features(text=False)["correct_units"] == List(Value("uint16"))


def test_a_checked_row_holds_uint16_and_leaves_the_callers_row_alone():
    row = story()
    before = copy.deepcopy(row)
    checked = check_row(row, "story")
    assert row == before
    assert [units.tolist() for units in checked["units_en"]] == [[5, 5, 9], [2]]
    assert {units.dtype for units in checked["units_en"] + checked["units_fr"]} == {np.dtype(np.uint16)}
    assert checked["text_fr"] == ["Un chat était assis.", "Il dormait."]


def test_int64_arrays_are_accepted_and_copied():
    units = np.array([65535, 0])
    checked = check_row(cloze(correct_units=units), "cloze")
    units[:] = 1
    assert checked["correct_units"].tolist() == [65535, 0]


def test_languages_come_from_the_unit_columns():
    columns = infer_columns(story(topic="picnic", voice_en="en-us", seed=3), "story")
    assert columns == story_columns(["en", "fr"], extra=["topic", "voice_en", "seed"])


def test_missing_metadata_becomes_none():
    columns = story_columns(["en", "fr"], extra=["topic"])
    assert check_row(story(), "story", columns)["topic"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units_fr": [[7]]}, r"story row 's1' must have the same number of sentences.*'units_fr': 1"),
        ({"text_fr": ["Un chat."]}, r"story row 's1' must have the same number of sentences.*'text_fr': 1"),
        ({"units_fr": [[7], []]}, r"story row 's1': units_fr\[1\] is an empty sentence"),
        ({"units_fr": []}, r"story row 's1': units_fr has no sentence"),
        ({"units_fr": [[7], [65536]]}, r"units_fr\[1\] has the unit id 65536, outside 0..65535 \(uint16\)"),
        ({"units_fr": [[7], [-1]]}, r"story row 's1': units_fr\[1\] has the unit id -1"),
        ({"units_fr": [[7], [1.5]]}, r"story row 's1': units_fr\[1\] must hold integers, got float64"),
        ({"units_fr": [7, 8]}, r"story row 's1': units_fr\[0\] must be one flat list"),
        ({"units_fr": None}, r"story row 's1' has no units_fr"),
        (
            {"text_fr": "Un chat."},
            r"story row 's1': text_fr must be a list with one entry a sentence, got str",
        ),
        ({"text_fr": ["Un chat.", 3]}, r"story row 's1': text_fr\[1\] must be string, got 3"),
        ({"speaker": 4}, r"story row 's1': speaker must be string, got 4"),
        ({"seed": 1 << 63}, r"story row 's1': seed is 9223372036854775808, which does not fit into int64"),
        ({"rate_wpm": 160.5}, r"story row 's1': rate_wpm must be int32"),
        ({"mood": "calm"}, r"story row 's1' has unknown columns \['mood'\]"),
        ({"story_id": ""}, r"a story row needs a non-empty string in 'story_id'"),
    ],
)
def test_a_faulty_story_is_refused_by_its_id(changes, message):
    with pytest.raises(ValueError, match=message):
        check_row(story(**changes), "story")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_units": [1, 2]}, r"cloze row 'c1': prompt_units\[0\] must be one flat list"),
        ({"correct_units": [[4, 5]]}, r"cloze row 'c1': correct_units must be one flat list .* \(1, 2\)"),
        ({"correct_units": [[4, 5], [6]]}, r"cloze row 'c1': correct_units must be one flat list"),
        ({"negative_units": []}, r"cloze row 'c1': negative_units is an empty sentence"),
        ({"ending_language": None}, r"cloze row 'c1' has no ending_language"),
        ({"prompt_text": "A cat."}, r"cloze row 'c1' has no correct_text"),
    ],
)
def test_a_faulty_cloze_item_is_refused_by_its_id(changes, message):
    with pytest.raises(ValueError, match=message):
        check_row(cloze(**changes), "cloze")


def test_a_parallel_row_has_one_sentence():
    row = {"story_id": "p1", "speaker": "", "units_en": [[1]], "units_fr": [[2, 3]]}
    assert check_row(row, "parallel")["units_fr"][0].tolist() == [2, 3]
    with pytest.raises(ValueError, match="parallel row 's1' must have exactly one sentence"):
        check_row(story(), "parallel")


def test_the_vocabulary_bounds_the_unit_ids():
    assert check_row(cloze(), "cloze", num_units=7)["negative_units"].tolist() == [6]
    with pytest.raises(ValueError, match=r"negative_units has the unit id 6, outside 0..5 \(num_units = 6\)"):
        check_row(cloze(), "cloze", num_units=6)


def test_audio_keeps_its_bytes_and_only_the_name_of_its_file(tmp_path):
    clip = tmp_path / "a.flac"
    clip.write_bytes(b"fLaC1")
    row = story(audio_en=[str(clip), b"fLaC2"], audio_fr=[{"bytes": b"x", "path": "/far/b.wav"}, clip])
    checked = check_row(row, "story")
    assert checked["audio_en"] == [{"bytes": b"fLaC1", "path": "a.flac"}, {"bytes": b"fLaC2", "path": None}]
    assert checked["audio_fr"][0] == {"bytes": b"x", "path": "b.wav"}


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([np.zeros(4), b"x"], r"audio_en\[0\] must be encoded audio .* got ndarray; encode a waveform first"),
        (["/nowhere/a.wav", b"x"], r"audio_en\[0\]: no audio bytes, and no file at '/nowhere/a.wav'"),
        ([b"", b"x"], r"audio_en\[0\] is empty audio"),
        ([b"x"], r"same number of sentences"),
    ],
)
def test_unusable_audio_is_refused(audio, message):
    with pytest.raises(ValueError, match=message):
        check_row(story(audio_en=audio, audio_fr=[b"x", b"y"]), "story")


def test_a_type_must_be_given_for_an_unknown_column_and_cannot_contradict_the_contract():
    assert infer_columns(story(mood="calm"), "story", extra={"mood": "string"})["mood"] == "string"
    with pytest.raises(ValueError, match=r"no type is known for \['mood'\]"):
        story_columns(["en"], extra=["mood"])
    with pytest.raises(ValueError, match="'speaker' is 'string' by contract, it cannot be 'int32'"):
        story_columns(["en"], extra={"speaker": "int32"})
    with pytest.raises(ValueError, match="unknown type 'float16'"):
        story_columns(["en"], extra={"mood": "float16"})


@pytest.mark.parametrize("languages", [[], "en", ["en", "en"], ["e/n"]])
def test_bad_languages_are_refused(languages):
    with pytest.raises(ValueError, match="language"):
        story_columns(languages)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown row kind 'tale'; allowed: story, cloze, parallel"):
        check_row(story(), "tale")
