"""Cloze items of every kind of source, and topic-cloze made of them by swapping endings."""

import csv
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clsi.text.cloze import draw_items
from hf_clsi.text.cloze_files import ClozeText, mixed_pairs, plain, read_cloze_texts, swap_endings
from hf_clsi.text.drops import Drops
from hf_clsi.text.stories import Holdout, draw_stories, tell

HEADER = [
    "InputStoryid",
    *(f"InputSentence{number}" for number in (1, 2, 3, 4)),
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
]
X_HEADER = [
    "story_id",
    *(f"input_sentence_{number}" for number in (1, 2, 3, 4)),
    "sentence_quiz1",
    "sentence_quiz2",
    "answer_right_ending",
]
ROWS = [
    [
        "s1",
        "Tom had a dog.",
        'Its name was "Rex".',
        "Rex, who was old, slept.",
        "Léa came.",
        "Rex woke.",
        "He flew.",
        "1",
    ],
    [
        "s2",
        "Anna ate.",
        "She was full.",
        "The café closed.",
        "It rained.",
        "She ate more.",
        "She went home.",
        "2",
    ],
]
ITEMS = [
    ClozeText(
        "s1",
        {"en": ("Tom had a dog.", 'Its name was "Rex".', "Rex, who was old, slept.", "Léa came.")},
        {"en": "Rex woke."},
        {"en": "He flew."},
    ),
    ClozeText(
        "s2",
        {"en": ("Anna ate.", "She was full.", "The café closed.", "It rained.")},
        {"en": "She went home."},
        {"en": "She ate more."},
    ),
]


def read(source, drops=None, **changes):
    return read_cloze_texts(
        source, drops=Drops() if drops is None else drops, **{"languages": ["en"], **changes}
    )


def write_csv(path, rows=ROWS, header=HEADER, **options):
    with open(path, "w", encoding=options.pop("encoding", "utf-8"), newline="") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def story(number, **changes):
    """A row like StoryCloze's, all of its own."""
    row = [
        f"s{number}",
        *(f"Sentence {number} {n}." for n in range(4)),
        f"Right {number}.",
        f"Wrong {number}.",
        "1",
    ]
    return [changes.get(name, cell) for name, cell in zip(HEADER, row, strict=True)]


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unix.csv", {"lineterminator": "\n"}),
        ("windows.csv", {"lineterminator": "\r\n", "encoding": "utf-8-sig", "quoting": csv.QUOTE_ALL}),
        ("spreadsheet.csv", {"delimiter": ";"}),
        ("tabs.tsv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}),
        ("quoted.tsv", {"delimiter": "\t", "quoting": csv.QUOTE_ALL}),
        ("UPPER.CSV", {}),
    ],
)
@pytest.mark.parametrize("header", [HEADER, X_HEADER])
def test_storycloze_tables(tmp_path, name, options, header):
    drops = Drops()
    assert read(write_csv(tmp_path / name, header=header, **options), drops) == ITEMS
    assert drops == []


def test_windows_1252_is_read_with_a_warning(tmp_path):
    path = write_csv(tmp_path / "old.csv", encoding="cp1252")
    with pytest.warns(UserWarning, match="read as Windows-1252"):
        assert read(path) == ITEMS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_xstorycloze_rows(tmp_path, kind):
    rows = [dict(zip(X_HEADER, [*row[:7], int(row[7])], strict=True)) for row in ROWS]
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path) == ITEMS


OURS = [
    {
        "id": 7,
        "prompt_en": "Tom ran. He fell.",
        "correct_en": " He  cried.",
        "negative_en": "The soup was hot.",
        "prompt_fr": ["Tom a couru.", "Il est tombé."],
        "correct_fr": "Il a pleuré.",
        "negative_fr": "La soupe était chaude.",
        "topic": "sport",
        "character": "tom",
        "pair_id": "p1",
    },
    {"prompt_en": ["Anna ate."], "correct_en": "She was full.", "negative_en": "She sank."},
]


def test_our_own_lines(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", OURS)
    assert read(path, languages=["en", "fr"]) == [
        ClozeText(
            "7",
            {"en": ("Tom ran.", "He fell."), "fr": ("Tom a couru.", "Il est tombé.")},
            {"en": "He cried.", "fr": "Il a pleuré."},
            {"en": "The soup was hot.", "fr": "La soupe était chaude."},
            "sport",
            "tom",
            "p1",
        ),
        ClozeText("mine-00001", {"en": ("Anna ate.",)}, {"en": "She was full."}, {"en": "She sank."}),
    ]


def test_topiccloze_reads_no_wrong_endings(tmp_path):
    rows = [{key: value for key, value in OURS[0].items() if not key.startswith("negative")}]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    (item,) = read(path, languages=["en", "fr"], task="topiccloze")
    assert (item.negative, item.pair_id, item.topic) == ({}, None, "sport")
    with pytest.raises(ValueError, match=r"gives no item of storycloze: \{'bad_row': 1\}"):
        read(path)
    assert read(write_csv(tmp_path / "s.csv"), task="topiccloze") == [
        replace(item, negative={}) for item in ITEMS
    ]


def test_a_file_a_language_is_joined_by_id(tmp_path):
    french = [
        [
            "s2",
            "Anna mangea.",
            "Elle était pleine.",
            "Le café ferma.",
            "Il plut.",
            "Elle rentra.",
            "Elle mangea.",
            "1",
        ],
        ["s9", "Un.", "Deux.", "Trois.", "Quatre.", "Cinq.", "Six.", "1"],
        ["s1", "Tom avait un chien.", "", "Rex dormait.", "Léa vint.", "Rex s'éveilla.", "Il vola.", "1"],
    ]
    rows = [*ROWS, ["s3", *ROWS[1][1:5], "Other.", "One.", "1"]]
    files = {"en": write_csv(tmp_path / "e.csv", rows), "fr": write_csv(tmp_path / "f.csv", french)}
    drops = Drops()
    (item,) = read(files, drops, languages=["en", "fr"])
    assert item == ClozeText(
        "s2",
        {
            "en": ITEMS[1].prompt["en"],
            "fr": ("Anna mangea.", "Elle était pleine.", "Le café ferma.", "Il plut."),
        },
        {"en": "She went home.", "fr": "Elle rentra."},
        {"en": "She ate more.", "fr": "Elle mangea."},
    )
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("s1", "empty_sentence"),
        ("s3", "missing_language"),
        ("s9", "missing_language"),
    ]


def test_files_to_join_need_ids(tmp_path):
    paths = {code: write_jsonl(tmp_path / f"{code}.jsonl", []) for code in ("en", "fr")}
    for code, path in paths.items():
        texts = {f"{part}_{code}": part for part in ("prompt", "correct", "negative")}
        write_jsonl(path, [{"id": "a", **texts}, {**texts, f"prompt_{code}": "Other."}])
    drops = Drops()
    assert [item.id for item in read(paths, drops, languages=["en", "fr"])] == ["a"]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("en.jsonl:2", "bad_row"),
        ("fr.jsonl:2", "bad_row"),
    ]


def test_the_first_so_many(tmp_path):
    path = write_csv(tmp_path / "s.csv", [story(n) for n in range(5)])
    assert [item.id for item in read(path, num_items=2)] == ["s0", "s1"]
    assert len(read(path, num_items=1871)) == 5


# -- the Hub -------------------------------------------------------------------------------------------------


def hub(monkeypatch, configs, rows):
    """Let the Hub have `rows[config][split]`."""
    asked = []

    def load_dataset(name, config, *, revision, streaming):
        asked.append((name, config, revision))
        return {split: iter(each) for split, each in rows[config].items()}

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: configs)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_xstorycloze_of_the_hub(monkeypatch):
    """The splits one after the other, a config for each wanted language that is there; there is no French."""
    rows = [dict(zip(X_HEADER, [*row[:7], int(row[7])], strict=True)) for row in ROWS]
    russian = [{**row, "sentence_quiz1": "Да.", "sentence_quiz2": "Нет."} for row in rows]
    data = {code: {"train": each[:1], "eval": each[1:]} for code, each in [("en", rows), ("ru", russian)]}
    asked = hub(monkeypatch, ["ar", "en", "ru"], data)
    assert read("juletxara/xstory_cloze", languages=["en", "fr"]) == ITEMS
    assert asked == [("juletxara/xstory_cloze", "en", None)]
    both = read("juletxara/xstory_cloze@refs/convert/parquet", languages=["ru", "fr", "en"])
    assert asked[1:] == [
        ("juletxara/xstory_cloze", "ru", "refs/convert/parquet"),
        ("juletxara/xstory_cloze", "en", "refs/convert/parquet"),
    ]
    assert [item.id for item in both] == ["s1", "s2"]
    assert [item.correct for item in both] == [
        {"ru": "Да.", "en": "Rex woke."},
        {"ru": "Нет.", "en": "She went home."},
    ]


def test_a_hub_dataset_in_our_columns(monkeypatch):
    hub(monkeypatch, ["default"], {None: {"test": OURS}})
    assert [item.id for item in read("owner/name", languages=["en", "fr"])] == ["7", "test-00001"]
    hub(monkeypatch, ["default"], {None: {"test": [{"text": "A story."}]}})
    with pytest.raises(ValueError, match=r"Hub dataset owner/name has the columns \['text'\]"):
        read("owner/name")


# -- the grammar ---------------------------------------------------------------------------------------------


def test_story_items_of_the_grammar():
    items = read("grammar", languages=["en", "fr"], num_items=5, seed=3)
    drawn = draw_items("storycloze", 6, "test", "strict", Holdout(3), 3)[:5]
    assert items == [
        ClozeText(
            item.id,
            {code: tuple(tell(item.prompt, code)[:4]) for code in ("en", "fr")},
            {code: tell(item.prompt, code)[4] for code in ("en", "fr")},
            {code: tell(item.negative, code)[4] for code in ("en", "fr")},
            item.prompt.topic,
            item.prompt.character,
            item.pair_id,
        )
        for item in drawn
    ]
    assert items[0].correct == items[1].negative and items[0].negative == items[1].correct


@pytest.mark.parametrize("rule", ["strict", "tuple"])
def test_topic_items_of_the_grammar_are_held_out_stories(rule):
    items = read("grammar", languages=["en", "de"], num_items=3, seed=3, task="topiccloze", holdout_rule=rule)
    plans = list(draw_stories(3, "test", Holdout(3), 3, rule))
    assert [item.id for item in items] == [f"test-{rule}-topiccloze-0000{number}" for number in range(3)]
    assert [(*item.prompt["de"], item.correct["de"]) for item in items] == [
        tuple(tell(p, "de")) for p in plans
    ]
    assert [(item.topic, item.character, item.negative) for item in items] == [
        (plan.topic, plan.character, {}) for plan in plans
    ]


@pytest.mark.parametrize("task", ["storycloze", "topiccloze"])
def test_the_fields_1871_items(task):
    """In every language there are so many different ones; topic-cloze pairs within seconds, by the rules."""
    items = read("grammar", languages=["en", "fr"], num_items=1871, task=task)
    for code in ("en", "fr"):
        texts = {(*item.prompt[code], item.correct[code], item.negative.get(code)) for item in items}
        assert len(texts) == len({item.id for item in items}) == 1871
    if task == "topiccloze":
        start = time.perf_counter()
        swapped = swap_endings(items, seed=0)
        assert time.perf_counter() - start < 10
        check(items, swapped)
        assert len(mixed_pairs(swapped)) < 20  # of 935: a character's last one, where its number is odd


# -- what is dropped and refused -----------------------------------------------------------------------------


def test_every_reason_once(tmp_path):
    rows = [
        story(1),
        [*story(2)[:5], *story(1)[5:]],  # the same endings, another prompt: another item
        ["s3", *story(1)[1:]],
        story(1, InputSentence1="Another one."),
        story(4, AnswerRightEnding="3"),
        story(5, AnswerRightEnding=""),
        story(6, InputSentence2=" "),
        story(7, RandomFifthSentenceQuiz2="..."),
        story(8, RandomFifthSentenceQuiz2=" right   8!"),
        story(9)[:7],
        ["", *story(10)[1:]],
    ]
    drops = Drops()
    items = read(write_csv(tmp_path / "s.csv", rows), drops)
    assert [item.id for item in items] == ["s1", "s2", "s-00010"]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("s3", "duplicate"),
        ("s1", "duplicate_id"),
        ("s4", "bad_answer"),
        ("s5", "bad_answer"),
        ("s6", "empty_sentence"),
        ("s7", "empty_sentence"),
        ("s8", "equal_endings"),
        ("s.csv:11", "bad_row"),
    ]


def test_equal_wrong_endings_do_not_matter_to_topiccloze(tmp_path):
    path = write_csv(tmp_path / "s.csv", [story(1, RandomFifthSentenceQuiz2="Right 1!"), story(2)])
    drops = Drops()
    assert [item.id for item in read(path, drops, task="topiccloze")] == ["s1", "s2"] and not drops
    assert [item.id for item in read(path, drops)] == ["s2"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_en": 5}, "bad_row"),
        ({"prompt_en": ["A dog.", 5]}, "bad_row"),
        ({"correct_en": None}, "bad_row"),
        ({"correct_fr": None}, "bad_row"),
        ({"id": True}, "bad_row"),
        ({"topic": ["a"]}, "bad_row"),
        ({"prompt_en": []}, "empty_sentence"),
        ({"prompt_en": "Tom ran."}, "unequal_sentences"),
        ({"negative_fr": "«Il a pleuré»"}, "equal_endings"),
        ({"prompt_en": None, "correct_en": None, "negative_en": None}, "missing_language"),
    ],
)
def test_faults_of_our_own_lines(tmp_path, changes, reason):
    drops = Drops()
    path = write_jsonl(tmp_path / "mine.jsonl", [{**OURS[0], **changes}, OURS[1]])
    assert [item.id for item in read(path, drops, languages=["en", "fr"])] == ["mine-00001"]
    assert drops.counts() == {reason: 1}


def test_without_translation_every_language_must_be_there(tmp_path):
    drops = Drops()
    path = write_jsonl(tmp_path / "mine.jsonl", OURS)
    assert [item.id for item in read(path, drops, languages=["en", "fr"], complete=True)] == ["7"]
    assert [(drop.id, drop.reason) for drop in drops] == [("mine-00001", "missing_language")]


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("grammar", {"task": "wordcloze"}, "task='wordcloze' is not one of"),
        ("grammar", {"languages": []}, "at least one, each once"),
        ("grammar", {"languages": ["fr"]}, "source_language='en' is not among"),
        ("grammar", {"num_items": 0}, "num_items=0 must be at least 1"),
        ("grammar", {}, "say how many with num_items"),
        ("grammar", {"num_items": 2, "languages": ["en", "xx"]}, "does not speak 'xx'"),
        ({"fr": "f.csv"}, {"languages": ["en", "fr"]}, r"has files for \['fr'\]; it needs one for"),
        ({"en": "e.csv", "fr": "f.csv"}, {}, r"has files for \['en', 'fr'\]"),
    ],
)
def test_arguments_out_of_range(source, changes, message):
    with pytest.raises(ValueError, match=message):
        read(source, **changes)


def test_sources_that_are_none(tmp_path):
    for source in ("nothing.csv", tmp_path / "nothing.jsonl", {"en": "nothing.csv"}):
        with pytest.raises(FileNotFoundError, match=r"no source of cloze items .* Give 'grammar', a file"):
            read(source)
    (tmp_path / "s.txt").touch()
    for source in (tmp_path, tmp_path / "s.txt"):
        with pytest.raises(ValueError, match=r"is no file of cloze items: its name must end in one of \.csv"):
            read(source)
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\], and these are neither StoryCloze's"):
        read(write_csv(tmp_path / "s.csv", [["1", "2"]], ["a", "b"]))
    with pytest.raises(ValueError, match=r"gives no item of storycloze: \{\}"):
        read(write_csv(tmp_path / "s.csv", []))


# -- topic-cloze ---------------------------------------------------------------------------------------------


def item(number, ending=None, topic=None, character=None, prompt=None):
    texts = dict.fromkeys(("en", "fr"), ending or f"Ending {number}.")
    prompts = dict.fromkeys(("en", "fr"), (prompt or f"Prompt {number}.",))
    return ClozeText(f"item-{number:03d}", prompts, texts, {}, topic, character)


def check(items, swapped):
    """All that holds of every topic-cloze set."""
    assert [replace(new, negative={}, pair_id=None) for new in swapped] == list(items)
    # Endings are dealt as a permutation, the same in every language.
    for code in items[0].correct:
        assert Counter(new.negative[code] for new in swapped) == Counter(new.correct[code] for new in swapped)
    pairs = defaultdict(list)
    for new in swapped:
        pairs[new.pair_id].append(new)
        for code, correct in new.correct.items():
            assert plain(new.negative[code]) != plain(correct)
    assert Counter(map(len, pairs.values())) == Counter(
        {2: len(items) // 2 - len(items) % 2} | ({3: 1} if len(items) % 2 else {})
    )
    assert set(pairs) == {f"pair-{number:05d}" for number in range(len(items) // 2)}
    for members in pairs.values():
        topics = [member.topic for member in members if member.topic is not None]
        assert len(set(topics)) == len(topics)
        for member in members:
            # The one that it receives from is of its pair, and not itself.
            assert any(other.correct == member.negative for other in members if other is not member)
        if len(members) == 2:
            assert members[0].negative == members[1].correct and members[1].negative == members[0].correct


@pytest.mark.parametrize("size", [*range(2, 12), 21, 50])
def test_random_sets_with_planted_duplicates(size):
    draw = random.Random(size)
    for seed in range(15):
        items = [item(number) for number in range(size)]
        for _ in range(
            size // 3
        ):  # pairs of equal endings, alike but for case and punctuation, in one language
            first, second = draw.sample(range(size), 2)
            code = draw.choice(["en", "fr"])
            shouted = items[second].correct[code].upper().replace(".", " !")
            items[first] = replace(items[first], correct={**items[first].correct, code: shouted})
        try:
            swapped = swap_endings(items, seed)
        except RuntimeError:
            assert size < 8  # only small sets run out of partners (test_matching: exactly those that must)
            continue
        check(items, swapped)


def test_a_scorer_of_endings_alone_is_right_half_the_time():
    draw = random.Random(0)
    for size in (2, 4, 10, 50):
        swapped = swap_endings([item(number) for number in range(size)], seed=size)
        score = defaultdict(draw.random)
        assert sum(score[new.correct["en"]] > score[new.negative["en"]] for new in swapped) == size // 2


def test_the_order_of_the_items_does_not_matter_and_the_seed_does():
    items = [item(number, topic=f"t{number % 5}", character=f"c{number % 3}") for number in range(31)]
    expected = {new.id: new for new in swap_endings(items, seed=1)}
    for seed in range(5):
        shuffled = random.Random(seed).sample(items, len(items))
        assert swap_endings(shuffled, seed=1) == [expected[each.id] for each in shuffled]
    assert {new.id: new for new in swap_endings(items, seed=2)} != expected


def test_the_pairs_are_the_same_in_every_language():
    items = [
        replace(item(number), correct={"en": f"E {number}.", "fr": f"F {number}."}) for number in range(9)
    ]
    for new in swap_endings(items, seed=0):
        assert new.negative["en"][2:] == new.negative["fr"][2:]


def test_partners_have_another_topic_and_the_same_character():
    items = [item(n, topic=f"t{n % 7}", character=f"c{n % 3}") for n in range(42)]  # 14 of every character
    for seed in range(10):
        swapped = swap_endings(items, seed)
        check(items, swapped)
        assert mixed_pairs(swapped) == []


def test_the_character_gives_way_where_no_partner_is_left():
    topics = ["a", "a", "a", "b", "a", "b", "c", "c"]
    characters = ["x", "x", "x", "x", "y", "y", "y", "y"]
    items = [item(n, topic=t, character=c) for n, (t, c) in enumerate(zip(topics, characters, strict=True))]
    for seed in range(10):
        swapped = swap_endings(items, seed)  # two of the three a's of x find no one in x
        check(items, swapped)
        assert len(mixed_pairs(swapped)) == 2


def test_items_of_one_prompt_are_not_swapped():
    """Both of their endings would be right."""
    items = [item(0, prompt="Same."), item(1, prompt="same!"), item(2), item(3)]
    for seed in range(10):
        swapped = swap_endings(items, seed)
        assert swapped[0].pair_id != swapped[1].pair_id


def test_what_cannot_be_swapped_is_refused():
    with pytest.raises(ValueError, match=r"among 1 items: .* Give more items"):
        swap_endings([item(0)], seed=0)
    with pytest.raises(RuntimeError, match="among 4 items: 4 of 4 items share the ending 'they ran' in "):
        swap_endings([item(n, ending="They ran!") for n in range(4)], seed=0)
    with pytest.raises(
        RuntimeError, match=r"3 of 4 items share the topic 'farm', more than half.* leave out the topic"
    ):
        swap_endings([item(n, topic="farm" if n else "sea") for n in range(4)], seed=0)
    with pytest.raises(ValueError, match="must have different ids"):
        swap_endings([item(0), item(0)], seed=0)
    with pytest.raises(ValueError, match=r"'item-000' has \['en', 'fr'\], 'item-001' has \['en'\]"):
        swap_endings([item(0), replace(item(1), correct={"en": "A."})], seed=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [("He ran.", "he  ran"), ("“Go!”", '"go"'), ("It’s me…", "It's me..."), ("Été", "E\u0301TE\u0301 !")],
)
def test_texts_that_are_the_same(one, other):
    assert plain(one) == plain(other)
    assert plain(one) != plain(f"not {other}")
