"""Sentences of story prose: literal cases, and what holds of any text."""

import random

import pytest

from hf_clsi.text.languages import LANGUAGES
from hf_clsi.text.sentences import split_sentences
from hf_clsi.text.stories import Holdout, draw_stories, tell

ENGLISH = [
    # plain
    ["Once upon a time, there was a dog.", "It ran.", "The end."],
    ["The end"],
    ["Where is it?", "Here!", "Oh no…", "It is gone."],
    # runs of stops
    ["What?!", "No!!!", "Really...?", "Yes."],
    # abbreviations, initials, decimals, numbers
    ["Mr. Fox met Mrs. Hen and Dr. Owl on St. Mary's Road.", "They sang."],
    ["He liked sweets, e.g. Turkish delight.", "So did I.", "Tom did not."],
    ["J. K. Rowling met Samuel L. Jackson and J.R.R. Tolkien.", "They ate."],
    ["I. M. Pei built it."],
    ["He took vitamin C.", "The boy ran.", "He likes the U.S. Army.", "In the U.S.", "He is well."],
    ["It was 3.5 miles and $2.50.", "Far!", "At 5 p.m.", "Tom slept."],
    ["He wears No. 7.", "No.", "He does not.", "6 is his."],
    ["1. Get up.", "2. Eat, etc.", "Then go."],
    # a small letter goes on
    ["He ran to Yahoo! and back.", "Hmm... maybe not."],
    # ellipses and stammers
    ["He waited...", "Nobody came.", "I... I am sorry.", "W... What?", "No... No, Tom.", "But … no."],
    # quotes
    ['"Hi!" said Tom.', '"How are you?" he asked.', 'Mom said, "I am well."', "They left."],
    ["“Hi!” said Tom.", "“Yes.”", "‘No.’", "He left."],
    ['"Let us go.', 'It is late!" he said.', "They went."],
    ["'Stop!' cried Ben.", "The dogs' bowl is Tom's.", "It's empty."],
    ['"Wait!" — he shouted.', "(He was sad.)", "Then he ran [fast].", "*Bang!*", "It fell."],
    ['" Hello . "', "Then he left ."],
    # who said it
    ['"Hi!" Tom said.', '"Hi!" Mom whispered to him.', '"Hi!" She said.', '"Go on!" Mr. Fox shouted.'],
    ['"Hi!" The little girl asked.', '"Oh!" Tom\'s mom said.', '"Us!" Tom and Ben cried.', "They ran."],
    ['"Stop!"', "Mom ran to him.", '"Yes!"', "He smiled and said nothing.", '"No."', "The end."],
    # nothing to say by itself
    ["Hi! 😊", "Then they left. 😊 ..."],
    ['... "Oh," he said.', "Good."],
]
FRENCH = [
    ["« Bonjour ! » dit M. Loup.", "Il rit.", "« Où vas-tu ? » demanda-t-il."],
    ["« Viens vite !", "Le loup est là ! » cria Mme. Poule.", "Mlle Oie dormait."],
    ["— Bonjour ! dit-il.", "— Salut ! répondit Léa.", "— Ça va ?"],
    ["« Au secours ! » La petite fille s’écria.", "« Oui ! » Maman a dit.", "« Non ! »", "Il s'est enfui."],
    ["Il y avait 3,5 km, c.-à-d. Loin pour lui.", "À J.-P. Dupont, il a dit « Merci. »", "Puis il partit."],
    ["« Hélas… »", "Le n. 5 a gagné.", "L’ours a mangé de la vitamine C.", "Puis il a dormi."],
    ["Il attendit … puis partit.", "Était-ce vrai ?!", "Oui."],
]
GERMAN = [["„Hallo!“ rief Tom.", "„Komm!“", "Dann ging er z.B. Eis essen."]]


@pytest.mark.parametrize(
    ("language", "sentences"),
    [(code, case) for code, cases in [("en", ENGLISH), ("fr", FRENCH), ("de", GERMAN)] for case in cases],
    ids=lambda value: value if isinstance(value, str) else value[0][:30],
)
def test_literal_texts(language, sentences):
    assert split_sentences(" ".join(sentences), language) == sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n\t ", []),
        ("One.\nTwo.", ["One.", "Two."]),
        ("The Dog\n\nOnce there was a dog\r\nIt ran", ["The Dog", "Once there was a dog", "It ran"]),
        (
            "He ran to the\nhouse and\r\nslept.\nthen he ate.",
            ["He ran to the house and slept.", "then he ate."],
        ),
        ("He ran\n\nand ran.", ["He ran", "and ran."]),  # an empty line is always a border
        ("* * *\n\nHi.\n\n* * *\n\nBye.\n---\n", ["* * * Hi. * * *", "Bye. ---"]),
        ("...!", ["...!"]),
        ("  Two   spaces.\u00a0Next\u202f! ", ["Two spaces.", "Next !"]),
        ("No space.Here is one.", ["No space.Here is one."]),
    ],
)
def test_white_space(text, sentences):
    assert split_sentences(text) == sentences


def test_other_languages_get_the_rules_without_words():
    assert split_sentences("Hola. ¿Qué tal? ¡Bien! Sí.", "es") == ["Hola.", "¿Qué tal?", "¡Bien!", "Sí."]


def test_an_abbreviation_belongs_to_its_language():
    assert split_sentences("Voilà M. Loup.", "fr") == ["Voilà M. Loup."]
    assert split_sentences("Cost: 5 m. Then 6.", "fr") == ["Cost: 5 m. Then 6."]
    assert split_sentences("Cost: 5 m. Then 6.", "en") == ["Cost: 5 m.", "Then 6."]


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_a_story_of_the_grammar_is_split_where_it_was_joined(code):
    for plan in draw_stories(400, "train", Holdout(0), 0):
        told = tell(plan, code)
        assert split_sentences(" ".join(told), code) == told


@pytest.mark.parametrize("language", ["en", "fr", "de", "es"])
def test_only_white_space_changes(language):
    """Joined, the sentences are the text with single spaces; each has a word if the text has one."""
    draw = random.Random(f"sentences {language}")
    pieces = [
        *" \n\t.!?…,;:«»“”\"'’()[]—-*😊\u00a0",
        "\n\n",
        "...",
        "Mr.",
        "M.",
        "Tom",
        "said",
        "dit",
        "I",
        "it",
    ]
    pieces += ["3", "A.", "é", "É", "\r\n", " ", " ", " ", " "]
    for _ in range(4000):
        text = "".join(draw.choices(pieces, k=draw.randrange(40)))
        sentences = split_sentences(text, language)
        assert " ".join(sentences) == " ".join(text.split()), repr(text)
        if any(map(str.isalnum, text)):
            assert all(any(map(str.isalnum, sentence)) for sentence in sentences), repr(text)


def test_a_sentence_split_again_stays_whole():
    for sentence in (sentence for case in ENGLISH for sentence in case):
        assert split_sentences(sentence) == [sentence]


def test_the_cost_is_linear():
    """One long unbroken sentence: a rule that looks back to its start would take minutes."""
    text = "and " * 100_000 + 'Mr. Fox said "Hi... " ' * 20_000
    assert " ".join(split_sentences(text)) == " ".join(text.split())
