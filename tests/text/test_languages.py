"""The languages of the grammar: complete tables, no word that gives two topics away, and new languages."""

import re
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from hf_clsi.text.cloze import draw_items
from hf_clsi.text.languages import (
    FRAME_TABLES,
    LANGUAGES,
    Character,
    Noun,
    Verb,
    language,
    missing_words,
    register_language,
    unknown_fields,
)
from hf_clsi.text.languages.english import English
from hf_clsi.text.stories import Holdout, draw_stories, story_row, tell


class Toy(English):
    """A language with its own words, word order and inflection: every noun takes -o, every verb -i."""

    code = "xx"
    name = "Toy"
    characters: ClassVar = {name: Character(name.capitalize(), "n") for name in English.characters}
    topics: ClassVar = {
        topic: replace(
            words,
            objects=tuple(Noun(f"{noun.singular}o") for noun in words.objects),
            actions=tuple(Verb(f"{verb.infinitive}i", f"{verb.infinitive}it") for verb in words.actions),
        )
        for topic, words in English.topics.items()
    }
    openings = ("{time} {C} {place} esti.", "{time} {C} {place} varti.")
    desires = ("{inf} {o} {C} vuli.", "{inf} {o} {C} speri.", "{inf} {o} {C} decidi.")
    happy_endings = ("{C} {past} {o}.", "{C} {o} monstri.", "{o} preti.")
    sad_endings = ("{C} {o} perdi.", "{C} {o} lassi.", "{o} fugi.")

    def character_forms(self, character):
        return {}

    def noun_forms(self, noun):
        return {"o": noun.singular}


@pytest.fixture
def registered():
    """Languages registered in a test leave with it."""
    before = dict(LANGUAGES)
    yield register_language
    LANGUAGES.clear()
    LANGUAGES.update(before)


def words_of(code):
    """(topic, phrase) of everything that a topic says, its objects aside."""
    for topic, words in LANGUAGES[code].topics.items():
        for phrase in (*words.places, *words.problems, *words.successes, *words.setbacks):
            yield topic, phrase
        for verb in words.actions:
            yield topic, verb.infinitive
            yield topic, verb.past


# -- the tables of every language ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_tables_are_complete(code):
    assert missing_words(LANGUAGES[code], LANGUAGES["en"]) == []
    assert unknown_fields(LANGUAGES[code]) == []
    assert len(LANGUAGES[code].topics) == len(LANGUAGES[code].characters) == 24


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_no_object_or_action_belongs_to_two_topics(code):
    topics = LANGUAGES[code].topics.values()
    objects = Counter(noun.singular for words in topics for noun in words.objects)
    actions = Counter(verb.infinitive for words in topics for verb in words.actions)
    assert max(objects.values()) == max(actions.values()) == 1
    assert (len(objects), len(actions)) == (144, 72)


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_no_object_of_a_topic_is_a_word_of_another(code):
    """Else a topic-cloze ending would sound right, or wrong, for another reason than its topic."""
    objects = {
        noun.singular: topic for topic, words in LANGUAGES[code].topics.items() for noun in words.objects
    }
    said = [*words_of(code), *((topic, word) for word, topic in objects.items())]
    frames = [("", frame) for table in FRAME_TABLES for frame in getattr(LANGUAGES[code], table)]
    names = [("", character.name) for character in LANGUAGES[code].characters.values()]
    offenders = [
        (word, topic, where, phrase)
        for word, topic in objects.items()
        for where, phrase in (*said, *frames, *names)
        if where != topic and re.search(rf"\b{word}(s|es)?\b", phrase)
    ]
    assert offenders == []


def test_gender_of_a_character_is_one_in_english_and_french():
    """The English pronoun follows the French noun, since English nouns have no gender; German nouns do."""
    for name, character in LANGUAGES["fr"].characters.items():
        assert character.gender == LANGUAGES["en"].characters[name].gender


def test_french_nouns_have_a_gender():
    nouns = [noun for words in LANGUAGES["fr"].topics.values() for noun in words.objects]
    assert {noun.gender for noun in nouns} == {"m", "f"}
    assert [noun.singular for noun in nouns if not noun.elides] == ["hamac"]


def test_german_nouns_have_one_of_three_genders():
    nouns = [noun for words in LANGUAGES["de"].topics.values() for noun in words.objects]
    assert {noun.gender for noun in nouns} == {"m", "f", "n"}
    assert [noun.singular for noun in nouns if noun.accusative != noun.singular] == ["Satellit"]
    assert all(noun.singular[0].isupper() for noun in nouns)


def test_german_characters_have_their_own_gender_and_its_article():
    articles = {"m": "der ", "f": "die ", "n": "das "}
    characters = LANGUAGES["de"].characters
    assert {each.gender for each in characters.values()} == {"m", "f", "n"}
    for name, each in characters.items():
        # People are named without an article, and have the same gender everywhere.
        assert (
            each.name.startswith(articles[each.gender])
            or each.gender == LANGUAGES["en"].characters[name].gender
        )
    assert characters["cat"].gender == "f" != LANGUAGES["fr"].characters["cat"].gender


def test_separable_verbs_of_german():
    verbs = [verb for words in LANGUAGES["de"].topics.values() for verb in words.actions]
    (verb,) = [verb for verb in verbs if verb.infinitive == "zubereiten"]
    assert (verb.zu_infinitive, verb.past, verb.particle) == ("zuzubereiten", "bereitete", "zu")
    for verb in verbs:
        assert "|" not in verb.infinitive
        assert verb.zu_infinitive.replace("zu", "", 1).strip() == verb.infinitive or verb.particle == "zu"
        assert verb.infinitive.startswith(verb.particle)
    # Two topics never share a form that is heard.
    assert len({verb.past for verb in verbs}) == len({verb.infinitive for verb in verbs}) == 72


def test_german_clauses_after_an_adverb_begin_with_their_verb():
    """Else "Zum Glück der Bauer öffnete": no clause may begin with an article, as main order would."""
    for words in LANGUAGES["de"].topics.values():
        for clause in (*words.successes, *words.setbacks):
            assert clause.split()[0] not in {"der", "die", "das", "ein", "eine"}
            assert clause[0].islower()
        for clause in words.problems:
            assert clause.split()[0] in {"der", "die", "das", "es"}


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_clauses_name_no_character(code):
    names = [character.name for character in LANGUAGES[code].characters.values()]
    for _, phrase in words_of(code):
        assert not any(re.search(rf"\b{name}\b", phrase) for name in names), phrase


# -- a new language ------------------------------------------------------------------------------------------


def test_a_new_language_needs_no_change_of_the_generator(registered):
    registered(Toy())
    plan = next(draw_stories(1, "train", Holdout(0), 0))
    plan = replace(
        plan, topic="farm", character="cat", object=0, place=0, action=0, time=0, opening=1, desire=2
    )
    plan = replace(plan, problem=0, success=True, turn=1, turn_frame=0, ending=0)
    assert tell(plan, "xx") == [
        "One day Cat on the farm varti.",
        "Feedi cowo Cat decidi.",
        "But the hay was damp.",
        "Luckily, fresh hay arrived.",
        "Cat feedit cowo.",
    ]
    row = story_row("s", plan, ["xx", "en", "fr"])
    assert len(row["text_xx"]) == len(row["text_en"]) == len(row["text_fr"])


def test_a_new_language_takes_part_in_cloze_items(registered):
    holdout = Holdout(0)
    before = draw_items("topiccloze", 24, "test", "strict", holdout, 0)
    registered(Toy())
    assert draw_items("topiccloze", 24, "test", "strict", holdout, 0) == before
    texts = before[0].texts("fr", "xx")
    assert texts["prompt_text"] == tell(before[0].prompt, "fr")[:4]
    assert texts["correct_text"] == tell(before[0].prompt, "xx")[4]


def test_registered_languages_do_not_leak_out_of_tests():
    assert sorted(LANGUAGES) == ["de", "en", "fr"]
    with pytest.raises(ValueError, match=r"does not speak 'xx'"):
        language("xx")


def test_a_language_that_lacks_words_is_refused_by_their_names(registered):
    class Broken(Toy):
        characters: ClassVar = {name: each for name, each in Toy.characters.items() if name != "bee"}
        topics: ClassVar = {name: each for name, each in Toy.topics.items() if name != "farm"} | {
            "beach": replace(Toy.topics["beach"], objects=Toy.topics["beach"].objects[:5])
        }
        times = Toy.times[:3]

    with pytest.raises(ValueError, match="language 'xx' does not match 'en' in 4 place") as refusal:
        registered(Broken())
    for problem in (
        "characters lacks 'bee'",
        "topics lacks 'farm'",
        "times has 3 entries, expected 4",
        "topic 'beach' has 5 objects, expected 6",
    ):
        assert problem in str(refusal.value)
    assert "xx" not in LANGUAGES


def test_a_language_with_words_that_english_lacks_is_refused(registered):
    class Richer(Toy):
        topics: ClassVar = Toy.topics | {"opera": Toy.topics["music"]}

    with pytest.raises(ValueError, match="topics has unknown 'opera'"):
        registered(Richer())


def test_a_frame_that_nothing_fills_is_refused(registered):
    class Broken(Toy):
        desires = (*Toy.desires[:2], "{inf} {an_o} {C} decidi.")
        sad_endings = ("{C} {success} {o}.", *Toy.sad_endings[1:])

    with pytest.raises(ValueError, match="in") as refusal:
        registered(Broken())
    assert "desires[2] has unknown field {an_o}" in str(refusal.value)
    assert "sad_endings[0] has unknown field {success}" in str(refusal.value)
    assert "xx" not in LANGUAGES


def test_a_language_must_say_how_it_inflects():
    class Silent(English):
        noun_forms = English.__mro__[1].noun_forms  # the abstract one

    with pytest.raises(TypeError, match="noun_forms"):
        Silent()
