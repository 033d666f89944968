"""The story grammar: literal stories in every language, hold-outs that hold, seeds that decide."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hf_clsi.text.languages import LANGUAGES
from hf_clsi.text.stories import (
    SENTENCES_PER_STORY,
    Holdout,
    StoryPlan,
    draw_plan,
    draw_stories,
    story_row,
    tell,
    tell_phrases,
)

HOLDOUT = Holdout(seed=3)
# A cat feeds a cow: every index is 0.
PLAN = StoryPlan(
    topic="farm",
    character="cat",
    friend="mouse",
    object=0,
    place=0,
    action=0,
    time=0,
    opening=0,
    desire=0,
    problem=0,
    success=True,
    turn=0,
    turn_frame=0,
    ending=0,
)


@pytest.fixture(scope="module")
def stories():
    """A few thousand of every split and rule, drawn once."""
    counts = {("train", "strict"): 6000}
    counts |= {(split, rule): 600 for split in ("dev", "test") for rule in ("strict", "tuple")}
    return {key: list(draw_stories(number, key[0], HOLDOUT, 11, key[1])) for key, number in counts.items()}


# -- literal stories -----------------------------------------------------------------------------------------


def test_a_happy_story():
    assert tell(PLAN, "en") == [
        "One day, the cat was on the farm.",
        "He wanted to feed a cow.",
        "But the hay was damp.",
        "Luckily, the farmer opened the gate.",
        "In the end, the cat fed the cow and laughed.",
    ]
    assert tell(PLAN, "fr") == [
        "Un jour, le chat était à la ferme.",
        "Il voulait nourrir une vache.",
        "Mais le foin était humide.",
        "Heureusement, le fermier a ouvert la barrière.",
        "À la fin, le chat a nourri la vache et a ri.",
    ]
    assert tell(PLAN, "de") == [
        "Eines Tages war die Katze auf dem Bauernhof.",
        "Sie wollte eine Kuh füttern.",
        "Aber das Heu war feucht.",
        "Zum Glück öffnete der Bauer das Gatter.",
        "Am Ende fütterte die Katze die Kuh und lachte.",
    ]


def test_a_sad_story_with_elisions():
    plan = replace(PLAN, topic="market", character="squirrel", friend="bee", object=5, place=1, action=1)
    plan = replace(plan, time=2, opening=1, desire=2, problem=1, success=False, turn_frame=2, ending=2)
    assert tell(plan, "en") == [
        "One evening, the squirrel was waiting in the grocery store.",
        "He decided to weigh an egg.",
        "But the merchant was shouting.",
        "Sadly, the bee could not help.",
        "Soon, the egg was gone, and the squirrel went to bed.",
    ]
    assert tell(plan, "fr") == [
        "Un soir, l'écureuil attendait à l'épicerie.",
        "Il a décidé de peser un œuf.",
        "Mais le marchand criait.",
        "Hélas, l'abeille ne pouvait pas aider.",
        "Bientôt, l'œuf avait disparu, et l'écureuil est allé au lit.",
    ]
    assert tell(plan, "de") == [
        "Eines Abends wartete das Eichhörnchen im Lebensmittelladen.",
        "Es beschloss, ein Ei zu wiegen.",
        "Aber der Händler schrie.",
        "Leider konnte die Biene nicht helfen.",
        "Bald war das Ei fort, und das Eichhörnchen ging ins Bett.",
    ]


def test_a_heroine_and_her_friend_agree_in_french():
    plan = replace(PLAN, topic="travel", character="mouse", friend="anna", object=5, place=1, action=1)
    plan = replace(plan, time=3, opening=1, desire=2, problem=1, turn_frame=2, ending=1)
    assert tell(plan, "en") == [
        "Yesterday, the mouse was waiting at the airport.",
        "She decided to buy a camera.",
        "But the crowd was huge.",
        "Luckily, Anna came to help.",
        "The mouse was proud and showed the camera to everyone.",
    ]
    assert tell(plan, "fr") == [
        "Hier, la souris attendait à l'aéroport.",
        "Elle a décidé d'acheter un appareil photo.",
        "Mais la foule était immense.",
        "Heureusement, Anna est venue aider.",
        "La souris était fière et a montré l'appareil photo à tout le monde.",
    ]
    assert tell(plan, "de") == [
        "Gestern wartete die Maus am Flughafen.",
        "Sie beschloss, eine Kamera zu kaufen.",
        "Aber die Menge war riesig.",
        "Zum Glück kam Anna zu Hilfe.",
        "Die Maus war stolz und zeigte allen die Kamera.",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence", "expected"),
    [
        # gender of the object: articles and the adjective that agrees
        (
            {"topic": "kitchen", "object": 1, "ending": 2},
            4,
            "Enfin, la tarte était prête, et le chat a dansé.",
        ),
        (
            {"topic": "kitchen", "object": 0, "ending": 2},
            4,
            "Enfin, le gâteau était prêt, et le chat a dansé.",
        ),
        # le/la before a vowel, and after a mute h, becomes l'
        ({"topic": "farm", "object": 4, "ending": 2}, 4, "Enfin, l'âne était prêt, et le chat a dansé."),
        (
            {"topic": "cleaning", "object": 1, "ending": 2},
            4,
            "Enfin, l'éponge était prête, et le chat a dansé.",
        ),
        ({"topic": "fishing", "object": 5, "ending": 0}, 4, "À la fin, le chat a attrapé l'hameçon et a ri."),
        # but not before the aspirated h of "hamac"
        ({"topic": "camping", "object": 4, "ending": 0}, 4, "À la fin, le chat a installé le hamac et a ri."),
        # de before a vowel becomes d', before a consonant it stays
        ({"topic": "school", "action": 2, "desire": 2}, 1, "Il a décidé d'étiqueter un livre."),
        ({"topic": "school", "action": 1, "desire": 2}, 1, "Il a décidé de ranger un livre."),
        # gender of the character: pronoun, adjective, participle with être
        ({"character": "turtle", "desire": 1}, 1, "Elle espérait nourrir une vache."),
        (
            {"character": "turtle", "ending": 1},
            4,
            "La tortue était fière et a montré la vache à tout le monde.",
        ),
        ({"character": "bear", "ending": 1}, 4, "L'ours était fier et a montré la vache à tout le monde."),
        (
            {"character": "bee", "success": False, "ending": 2},
            4,
            "Bientôt, la vache avait disparu, et l'abeille est allée au lit.",
        ),
        # gender of the friend
        ({"turn_frame": 2, "friend": "julie"}, 3, "Heureusement, Julie est venue aider."),
        ({"turn_frame": 2, "friend": "fox"}, 3, "Heureusement, le renard est venu aider."),
        # "de la" and "d'" inside clauses are left alone
        ({"topic": "cleaning"}, 2, "Mais il y avait de la poussière partout."),
        ({"topic": "painting", "turn": 1}, 3, "Heureusement, l'artiste a ajouté de l'or."),
    ],
)
def test_french_articles_elision_and_agreement(changes, sentence, expected):
    assert tell(replace(PLAN, **changes), "fr")[sentence] == expected


@pytest.mark.parametrize(
    ("changes", "sentence", "expected"),
    [
        ({"topic": "market", "object": 0}, 1, "He wanted to sell an apple."),
        ({"topic": "fishing", "object": 4}, 1, "He wanted to catch an eel."),
        ({"topic": "travel", "object": 4, "character": "emma"}, 1, "She wanted to check an umbrella."),
        ({"topic": "music", "action": 1, "desire": 1}, 1, "He hoped to listen to a drum."),
        ({"topic": "music", "action": 1}, 4, "In the end, the cat listened to the drum and laughed."),
        ({"topic": "camping", "ending": 0}, 4, "In the end, the cat set up the tent and laughed."),
        ({"character": "tom", "ending": 1}, 4, "Tom was proud and showed the cow to everyone."),
    ],
)
def test_english_articles_particles_and_pronouns(changes, sentence, expected):
    assert tell(replace(PLAN, **changes), "en")[sentence] == expected


@pytest.mark.parametrize(
    ("changes", "sentence", "expected"),
    [
        # nominative and accusative of the three genders
        ({"topic": "forest", "object": 0}, 1, "Sie wollte einen Pilz auflesen."),
        ({"topic": "forest", "object": 1}, 1, "Sie wollte eine Eichel auflesen."),
        ({"topic": "forest", "object": 3}, 1, "Sie wollte ein Nest auflesen."),
        ({"topic": "forest", "object": 0, "ending": 1}, 4, "Die Katze war stolz und zeigte allen den Pilz."),
        ({"topic": "forest", "object": 3, "ending": 1}, 4, "Die Katze war stolz und zeigte allen das Nest."),
        (
            {"topic": "forest", "object": 0, "ending": 2},
            4,
            "Endlich war der Pilz bereit, und die Katze tanzte.",
        ),
        # a weak noun has -en in the accusative only
        ({"topic": "space", "object": 3, "desire": 1}, 1, "Sie hoffte, einen Satelliten zu testen."),
        ({"topic": "space", "object": 3}, 4, "Am Ende testete die Katze den Satelliten und lachte."),
        (
            {"topic": "space", "object": 3, "success": False, "ending": 2},
            4,
            "Bald war der Satellit fort, und die Katze ging ins Bett.",
        ),
        # a separable verb: one word in the infinitive, around "zu", and apart in the past
        ({"topic": "school", "action": 1}, 1, "Sie wollte ein Buch wegräumen."),
        ({"topic": "school", "action": 1, "desire": 2}, 1, "Sie beschloss, ein Buch wegzuräumen."),
        ({"topic": "school", "action": 1}, 4, "Am Ende räumte die Katze das Buch weg und lachte."),
        ({"topic": "school", "action": 2, "desire": 2}, 1, "Sie beschloss, ein Buch zu beschriften."),
        # the verb is the second element, whatever comes first
        ({"topic": "school", "turn_frame": 1}, 3, "Dann erklärte die Lehrerin die Lektion."),
        ({"topic": "school", "success": False}, 3, "Leider bestrafte die Lehrerin die Klasse."),
        # pronouns follow the German gender
        ({"character": "frog"}, 1, "Er wollte eine Kuh füttern."),
        ({"character": "squirrel"}, 1, "Es wollte eine Kuh füttern."),
        ({"character": "emma"}, 1, "Sie wollte eine Kuh füttern."),
    ],
)
def test_german_cases_word_order_and_pronouns(changes, sentence, expected):
    assert tell(replace(PLAN, **changes), "de")[sentence] == expected


def test_phrases_are_what_a_slow_reader_says_in_one_breath():
    assert tell_phrases(PLAN, "en")[0] == ["One day,", "the cat", "was on the farm."]
    assert tell_phrases(PLAN, "fr")[4] == ["À la fin,", "le chat", "a nourri", "la vache", "et a ri."]
    assert tell_phrases(PLAN, "de")[4] == ["Am Ende", "fütterte", "die Katze", "die Kuh", "und lachte."]
    plan = replace(PLAN, topic="school", action=2, desire=2)
    assert tell_phrases(plan, "fr")[1] == ["Il a décidé", "d'étiqueter", "un livre."]


def test_an_unknown_language_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"does not speak 'tlh'.*\['de', 'en', 'fr'\].*CONTRIBUTING"):
        tell(PLAN, "tlh")


# -- every story ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_every_story_has_five_whole_sentences(stories, code):
    for plan in stories["train", "strict"]:
        sentences = tell(plan, code)
        assert len(sentences) == SENTENCES_PER_STORY == 5
        assert [" ".join(phrases) for phrases in tell_phrases(plan, code)] == sentences
        for sentence in sentences:
            assert re.fullmatch(r"[A-ZÀÉŒ][^.{}|]*[^.{}| ]\.", sentence), sentence
            assert "  " not in sentence


def test_no_french_sentence_lacks_an_elision(stories):
    vowel_left = re.compile(r"\b(le|la|de|ne|que|se|je|me) (?=[aàâeéèêiîoôuûœ])", flags=re.IGNORECASE)
    for plan in stories["train", "strict"]:
        for sentence in tell(plan, "fr"):
            assert not vowel_left.search(sentence), sentence
            assert not re.search(r"\b(à le|de le|à les|de les)\b", sentence), sentence


def test_no_english_article_is_wrong(stories):
    for plan in stories["train", "strict"]:
        for sentence in tell(plan, "en"):
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", sentence), sentence


def test_no_german_article_contradicts_its_noun(stories):
    """Every article before an object has one of the forms of the object's gender, here written out again."""
    forms = {"m": {"der", "den", "einen"}, "f": {"die", "eine"}, "n": {"das", "ein"}}
    genders = {}
    for words in LANGUAGES["de"].topics.values():
        for noun in words.objects:
            genders |= {noun.singular: noun.gender, noun.accusative: noun.gender}
    seen = Counter()
    for plan in stories["train", "strict"]:
        for sentence in tell(plan, "de"):
            for article, noun in re.findall(r"\b(\w+) (\w+)", sentence):
                if noun in genders and article in set().union(*forms.values()):
                    assert article in forms[genders[noun]], sentence
                    seen[article] += 1
    assert set(seen) == set().union(*forms.values())


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_stories_are_short(stories, code):
    """Words become speech and speech becomes tokens: the experiment's budget rests on this."""
    words = [len(sentence.split()) for plan in stories["train", "strict"] for sentence in tell(plan, code)]
    assert max(words) <= 15
    assert np.mean(words) < 7.5


# -- hold-outs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["dev", "test"])
def test_strict_holdout_pairs_are_never_heard_in_training(stories, split):
    """Neither as main character and object, nor as friend and object."""
    heard = {plan.pair for plan in stories["train", "strict"]}
    heard |= {(plan.topic, plan.object, plan.friend) for plan in stories["train", "strict"]}
    held_out = {plan.pair for plan in stories[split, "strict"]}
    assert len(held_out) > 200
    assert heard & held_out == set()


def test_dev_and_test_share_no_pair(stories):
    dev, test = ({plan.pair for plan in stories[split, "strict"]} for split in ("dev", "test"))
    assert dev & test == set()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_tuple_holdout_keeps_the_pair_and_changes_place_and_action(stories, split):
    heard = {plan.content for plan in stories["train", "strict"]}
    held_out = {plan.content for plan in stories[split, "tuple"]}
    assert heard & held_out == set()
    for plan in stories[split, "tuple"]:
        assert HOLDOUT.split_of_pair(plan.pair) == "train"


@pytest.mark.parametrize("code", ["en", "fr", "de"])
@pytest.mark.parametrize("rule", ["strict", "tuple"])
def test_no_training_story_is_a_held_out_story(stories, rule, code):
    trained = {tuple(tell(plan, code)) for plan in stories["train", "strict"]}
    dev = {tuple(tell(plan, code)) for plan in stories["dev", rule]}
    test = {tuple(tell(plan, code)) for plan in stories["test", rule]}
    assert trained & dev == trained & test == dev & test == set()
    # Every draw was a new story, not only a new plan.
    assert [len(trained), len(dev), len(test)] == [6000, 600, 600]


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_no_strict_ending_is_heard_in_training(stories, code):
    trained = {tell(plan, code)[-1] for plan in stories["train", "strict"]}
    endings = {tell(plan, code)[-1] for split in ("dev", "test") for plan in stories[split, "strict"]}
    assert trained & endings == set()


def test_the_holdout_is_no_accident_of_the_draw():
    """Every plan that training can ever draw is outside; not only those of a sample."""
    allowed = {pair for topic in HOLDOUT.topics for pair in HOLDOUT.pairs("train", topic)}
    held = {
        pair for split in ("dev", "test") for topic in HOLDOUT.topics for pair in HOLDOUT.pairs(split, topic)
    }
    assert len(allowed) == 24 * 6 * (24 - 3 - 4)
    assert len(held) == 24 * 6 * (3 + 4)
    assert allowed & held == set()
    for pair in allowed:
        dealt = [HOLDOUT.combinations(split, "tuple", pair) for split in ("train", "dev", "test")]
        assert [len(each) for each in dealt] == [4, 1, 1]
        assert len({combination for each in dealt for combination in each}) == 6


def test_every_object_and_character_is_heard_in_training(stories):
    """A held-out story is a new combination of known things."""
    objects = {(plan.topic, plan.object) for plan in stories["train", "strict"]}
    characters = Counter(plan.character for plan in stories["train", "strict"])
    assert len(objects) == 24 * 6
    assert set(characters) == set(LANGUAGES["en"].characters)
    assert min(characters.values()) > 100
    for topic in HOLDOUT.topics:
        per_object = Counter(pair[1] for pair in HOLDOUT.pairs("train", topic))
        assert per_object == dict.fromkeys(range(6), 17)


def test_a_friend_is_not_the_main_character(stories):
    assert all(plan.friend != plan.character for plans in stories.values() for plan in plans)


def test_topics_take_turns(stories):
    counts = Counter(plan.topic for plan in stories["train", "strict"])
    assert counts == dict.fromkeys(HOLDOUT.topics, 250)


def test_half_of_the_stories_end_well(stories):
    happy = sum(plan.success for plan in stories["train", "strict"])
    assert 2800 < happy < 3200  # 5 standard deviations


# -- seeds and limits ----------------------------------------------------------------------------------------


def test_the_seed_decides():
    def draw(seed, holdout_seed=0):
        return list(draw_stories(50, "train", Holdout(holdout_seed), seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1) != draw(1, holdout_seed=1)


def test_more_stories_begin_with_the_same_ones():
    few = list(draw_stories(30, "test", HOLDOUT, 5))
    assert list(draw_stories(60, "test", HOLDOUT, 5))[:30] == few


def test_story_row_is_aligned_sentence_by_sentence():
    row = story_row("train-000007", PLAN, ["en", "fr"])
    assert list(row) == ["story_id", "topic", "plan", "text_en", "text_fr"]
    assert (row["story_id"], row["topic"]) == ("train-000007", "farm")
    assert StoryPlan(**row["plan"]) == PLAN
    assert row["text_en"] == tell(PLAN, "en")
    assert row["text_fr"] == tell(PLAN, "fr")


def test_a_holdout_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"dev_characters=11.*test_characters=12.*24 characters.*fewer"):
        Holdout(0, dev_characters=11, test_characters=12)
    with pytest.raises(ValueError, match=r"dev_tuples=3 and test_tuples=3.*6 \(place, action\) combinations"):
        Holdout(0, dev_tuples=3, test_tuples=3)


def test_no_plan_where_nothing_is_held_out():
    rng = np.random.default_rng(0)
    holdout = Holdout(0, dev_characters=0, dev_tuples=0)
    assert draw_plan(rng, holdout, "dev", "strict", topic="farm") is None
    assert draw_plan(rng, holdout, "dev", "tuple", topic="farm") is None
    assert draw_plan(rng, holdout, "test", "strict", topic="farm").topic == "farm"
    with pytest.raises(RuntimeError, match=r"no new dev story of topic 'beach' found after 0 stories"):
        list(draw_stories(1, "dev", holdout, 0))
