"""Translators by name and by settings; what every engine refuses."""

import json
import sys

import pytest

from hf_clsi.text.translation import (
    Translation,
    Translator,
    check_languages,
    check_story,
    language_code,
    language_name,
    load_translator,
)
from hf_clsi.text.translation_marian import MarianTranslator
from hf_clsi.text.translation_openai import OpenAITranslator


def test_engine_by_name():
    assert load_translator("openai:gpt-4o") == OpenAITranslator("gpt-4o")
    assert load_translator("marian:Helsinki-NLP/opus-mt-en-de") == MarianTranslator(
        "Helsinki-NLP/opus-mt-en-de"
    )


def test_model_name_with_a_colon():
    assert load_translator("openai:llama3:8b").model == "llama3:8b"


@pytest.mark.parametrize(
    "translator",
    [
        OpenAITranslator(
            "gpt-4o",
            base_url="http://localhost:8000/v1",
            temperature=None,
            options={"max_tokens": 900},
            cache=False,
        ),
        MarianTranslator("some/model", num_beams=1, target_code=">>fra<<"),
    ],
    ids=["openai", "marian"],
)
def test_settings_make_the_translator_again(translator):
    settings = json.loads(json.dumps(translator.settings()))
    assert load_translator(settings) == translator
    assert load_translator(settings).settings() == settings


def test_names():
    assert OpenAITranslator("gpt-4o").name == "openai:gpt-4o"
    assert MarianTranslator().name == "marian:Helsinki-NLP/opus-mt-tc-big-en-fr"


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_translation.py").write_text(
        "from hf_clsi.text.translation import Translation, Translator\n"
        "class Shouting(Translator):\n"
        "    name = 'shouting'\n"
        "    def __init__(self, mark='!'):\n"
        "        self.mark = mark\n"
        "    def settings(self):\n"
        "        return {'engine': 'own_translation:Shouting', 'mark': self.mark}\n"
        "    def translate(self, stories, source_language, target_language, progress=False):\n"
        "        return [Translation(tuple(s.upper() + self.mark for s in story)) for story in stories]\n"
        "class NoTranslator:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_translation", None)


def test_class_of_the_users_own(own_module):
    assert load_translator("own_translation:Shouting").translate([["a"]], "en", "fr") == [
        Translation(("A!",))
    ]
    settings = {"engine": "own_translation:Shouting", "mark": "?"}
    assert isinstance(load_translator(settings), Translator)
    assert load_translator(settings).settings() == settings


@pytest.mark.parametrize("path", ["own_translation:NoTranslator", "own_translation:Missing"])
def test_class_that_is_no_translator(own_module, path):
    with pytest.raises(ValueError, match=rf"{path} is no subclass of"):
        load_translator(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("gpt-4o", r"unknown translation engine 'gpt-4o'; give one of \['marian', 'openai'\]"),
        ({"model": "gpt-4o"}, "unknown translation engine ''"),
        ("openai:", "engine 'openai' needs a model, as in 'openai:NAME'"),
        ({"engine": "openai"}, "needs a model"),
        ({"engine": "marian", "model": "m", "beams": 3}, "'marian' does not take these settings: .*beams"),
    ],
)
def test_settings_that_name_no_translator(settings, message):
    with pytest.raises(ValueError, match=message):
        load_translator(settings)


def test_module_that_does_not_exist():
    with pytest.raises(ImportError):
        load_translator("no_such_module_anywhere:Class")


def test_translation_has_sentences_or_a_reason():
    with pytest.raises(ValueError, match="either sentences or the reason"):
        Translation(None)
    with pytest.raises(ValueError, match="either sentences or the reason"):
        Translation(("a",), "refused")


@pytest.mark.parametrize(
    ("story", "reason"),
    [([], "empty_story"), (["a", " \n"], "empty_sentence"), (["a", "b\ud83d"], "not_text"), (["a"], None)],
)
def test_story_that_cannot_be_translated(story, reason):
    fault = check_story(story)
    assert (fault and fault.reason) == reason


@pytest.mark.parametrize("story", ["one string", [1, 2], [["nested"]]])
def test_what_is_no_story(story):
    with pytest.raises(ValueError, match="a story is a list of sentences"):
        check_story(story)


@pytest.mark.parametrize("languages", [("en", "en"), ("", "fr"), ("en", "")])
def test_languages_that_need_no_translation(languages):
    with pytest.raises(ValueError, match="from one language to another"):
        check_languages(*languages)


@pytest.mark.parametrize(
    ("tag", "code", "name"),
    [
        ("fr", "fr", "French"),
        ("fra", "fr", "French"),
        ("FR", "fr", "French"),
        ("pt_BR", "pt", "Portuguese (pt_BR)"),
        ("tlh", "tlh", "tlh"),
    ],
)
def test_language_tags(tag, code, name):
    assert (language_code(tag), language_name(tag)) == (code, name)
