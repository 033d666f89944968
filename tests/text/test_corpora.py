"""Stories of every kind of source: what comes out, what is dropped and why, and which split it is in."""

import gzip
import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clsi.text import corpora
from hf_clsi.text.corpora import StoryText, read_stories, source_digest
from hf_clsi.text.drops import Drops
from hf_clsi.text.languages import LANGUAGES
from hf_clsi.text.stories import Holdout, draw_stories, tell


def read(source, split="train", drops=None, **changes):
    settings = {"languages": ["en"], "validation_share": 0.0, **changes}
    return list(read_stories(str(source), split=split, drops=Drops() if drops is None else drops, **settings))


def write_jsonl(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count, offset=0):
    return [{"text": f"Tom had {n} dogs. They ran."} for n in range(offset, offset + count)]


# -- sources -------------------------------------------------------------------------------------------------


def test_the_grammar_tells_every_language():
    stories = read("grammar", languages=["en", "fr", "de"], num_stories=3, seed=5)
    plans = list(draw_stories(3, "train", Holdout(5), 5))
    assert stories == [
        StoryText(
            f"train-00000{number}",
            {code: tuple(tell(plan, code)) for code in ("en", "fr", "de")},
            plan.topic,
            "train",
        )
        for number, plan in enumerate(plans)
    ]
    validation = read("grammar", "validation", languages=["fr"], source_language="fr", num_stories=2, seed=5)
    assert [story.id for story in validation] == ["validation-000000", "validation-000001"]
    assert [story.texts["fr"] for story in validation] == [
        tuple(tell(plan, "fr")) for plan in draw_stories(2, "dev", Holdout(5), 5)
    ]


def test_stories_of_the_grammar_outside_the_limits_are_dropped():
    drops = Drops()
    assert read("grammar", num_stories=4, min_sentences=6, max_sentences=9, drops=drops) == []
    assert drops.counts() == {"too_few_sentences": 4}


@pytest.mark.parametrize("packed", [False, True])
def test_tinystories_text(tmp_path, packed):
    content = 'Once there was a dog.\n\nIt ran. \n<|endoftext|>\n"Hi!" said Tom.\nHe left.\n<|endoftext|>\n'
    path = tmp_path / ("mini.txt.gz" if packed else "mini.txt")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read(path) == [
        StoryText("mini-00000000", {"en": ("Once there was a dog.", "It ran.")}, None, "train"),
        StoryText("mini-00000001", {"en": ('"Hi!" said Tom.', "He left.")}, None, "train"),
    ]


def test_json_lines_in_one_language_and_in_two(tmp_path):
    rows = [
        {"text": "A dog. It ran."},
        {
            "story_id": "s7",
            "text_en": "A cat.  It ran.",
            "text_fr": ["Un chat.", " Il a \n couru. "],
            "topic": "cats",
        },
        {"id": 8, "text_en": ["An owl.", "It flew. Far."], "text_fr": None},
    ]
    assert read(write_jsonl(tmp_path / "two.jsonl", rows), languages=["en", "fr"]) == [
        StoryText("two-00000000", {"en": ("A dog.", "It ran.")}, None, "train"),
        StoryText("s7", {"en": ("A cat.", "It ran."), "fr": ("Un chat.", "Il a couru.")}, "cats", "train"),
        StoryText("8", {"en": ("An owl.", "It flew. Far.")}, None, "train"),
    ]


def test_the_source_language_is_that_of_the_column_text(tmp_path):
    rows = [{"text": "Voilà M. Loup. Il dort."}]
    (story,) = read(write_jsonl(tmp_path / "f.jsonl", rows), languages=["en", "fr"], source_language="fr")
    assert story.texts == {"fr": ("Voilà M. Loup.", "Il dort.")}


def test_parquet_reads_only_its_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clsi.text.sources._BATCH_ROWS", 2)
    table = {
        "story_id": ["a", "b", "c"],
        "text_en": ["Up. On.", "In. By.", "Go. Hop."],
        "audio": [b"\xff"] * 3,
    }
    table["text_fr"] = [["Un.", "Or."], None, ["Été.", "Fin."]]
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    stories = read(tmp_path / "t.parquet", languages=["en", "fr"])
    assert [(story.id, story.texts.get("fr")) for story in stories] == [
        ("a", ("Un.", "Or.")),
        ("b", None),
        ("c", ("Été.", "Fin.")),
    ]


def test_a_folder_of_files_without_splits(tmp_path):
    write_jsonl(tmp_path / "part-1.jsonl", numbered(2, 5))
    write_jsonl(tmp_path / "part-0.jsonl", numbered(2))
    write_jsonl(tmp_path / "test.jsonl", numbered(1, 9))
    assert [(story.id, story.texts["en"][0]) for story in read(tmp_path)] == [
        ("part-0-00000000", "Tom had 0 dogs."),
        ("part-0-00000001", "Tom had 1 dogs."),
        ("part-1-00000000", "Tom had 5 dogs."),
        ("part-1-00000001", "Tom had 6 dogs."),
    ]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"], ["validation-00000-of-00001"]),
        (["TinyStoriesV2-GPT4-train", "TinyStoriesV3-train"], ["TinyStoriesV2-GPT4-valid"]),
    ],
)
def test_a_folder_with_its_own_splits(tmp_path, train, validation):
    for number, name in enumerate(train):
        write_jsonl(tmp_path / f"{name}.jsonl", numbered(2, 10 * number))
    write_jsonl(tmp_path / f"{validation[0]}.jsonl", [*numbered(1, 90), *numbered(1, 11)])
    drops = Drops()
    stories = read(tmp_path, validation_share=0.5, drops=drops)
    assert [story.id for story in stories] == ["train-00000000", "train-00000001", "train-00000002"]
    assert [story.texts["en"][0] for story in stories] == [f"Tom had {n} dogs." for n in (0, 1, 10)]
    assert [(drop.id, drop.reason) for drop in drops] == [("train-00000003", "in_validation")]
    stories = read(tmp_path, "validation", validation_share=0.5)
    assert [story.id for story in stories] == ["validation-00000000", "validation-00000001"]
    assert {story.split for story in stories} == {"validation"}


def hub(monkeypatch, folder, asked=None):
    """Let datasets read a local folder where the Hub is asked."""
    load = datasets.load_dataset

    def load_dataset(name, config=None, *, revision=None, streaming):
        assert streaming
        if asked is not None:
            asked.append((name, config, revision))
        return load(str(folder), config, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_hub_dataset_with_its_own_splits(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", numbered(3))
    write_jsonl(tmp_path / "validation.jsonl", numbered(2, 2))
    asked, drops = [], Drops()
    hub(monkeypatch, tmp_path, asked)
    stories = read("owner/name@v1", drops=drops)
    assert [story.id for story in stories] == ["train-00000000", "train-00000001"]
    assert [(drop.id, drop.reason) for drop in drops] == [("train-00000002", "in_validation")]
    assert [story.id for story in read("owner/name", "validation")] == [
        "validation-00000000",
        "validation-00000001",
    ]
    assert asked == [("owner/name", None, "v1"), ("owner/name", None, None)]


def test_a_hub_dataset_without_validation_is_divided(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", numbered(200))
    hub(monkeypatch, tmp_path)
    train, validation = (read("owner/name", split, validation_share=0.3) for split in ("train", "validation"))
    assert len(train) + len(validation) == 200
    assert 40 < len(validation) < 80
    assert not {story.id for story in train} & {story.id for story in validation}


def test_a_hub_dataset_without_stories_is_refused(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "test.jsonl", numbered(2))
    hub(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but no 'train'"):
        read("owner/name")
    (tmp_path / "test.jsonl").unlink()
    pq.write_table(pa.table({"story": ["Go. Hop."]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"owner/name has the columns \['story'\], but neither 'text' nor"):
        read("owner/name")


# -- what is dropped -----------------------------------------------------------------------------------------


def test_every_reason_once(tmp_path):
    good = {"story_id": "good", "text_en": ["A bee.", "It flew."], "text_fr": "Un. Deux."}
    lines = [
        good,
        {**good, "story_id": "again", "text_en": " A bee.\n\nIt flew."},
        {**good, "text_en": "Another. One."},
        {"story_id": "empty", "text_en": " ... \n"},
        {"story_id": "no sentence", "text_en": ["A.", " "], "text_fr": ["B.", "C."]},
        {"story_id": "no list", "text_en": []},
        {"text_en": 5},
        {"text_en": ["A.", None]},
        {"story_id": ["a"], "text_en": "Yes. No."},
        {"other": "Go. Hop."},
        {"text_fr": "Go. Hop."},
        {"story_id": "few", "text_en": "Few."},
        {"story_id": "many", "text_en": "Me. No. Oh. Up."},
        {"story_id": "long", "text_en": "Long. A" + "a" * 31},
        {"story_id": "unequal", "text_en": "Up. Down.", "text_fr": "Haut."},
    ]
    path = write_jsonl(tmp_path / "s.jsonl", lines)
    with path.open("ab") as file:
        file.write(b'not JSON\n{"text": "\xe9. B."}\n')
    drops = Drops()
    limits = {"min_sentences": 2, "max_sentences": 3, "max_sentence_characters": 30}
    assert [story.id for story in read(path, languages=["en", "fr"], drops=drops, **limits)] == ["good"]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("again", "duplicate"),
        ("good", "duplicate_id"),
        ("s.jsonl:4", "empty"),
        ("no sentence", "empty"),
        ("s.jsonl:6", "empty"),
        ("s.jsonl:7", "bad_row"),
        ("s.jsonl:8", "bad_row"),
        ("s.jsonl:9", "bad_row"),
        ("s.jsonl:10", "bad_row"),
        ("s.jsonl:11", "missing_language"),
        ("few", "too_few_sentences"),
        ("many", "too_many_sentences"),
        ("long", "long_sentence"),
        ("unequal", "unequal_sentences"),
        ("s.jsonl:16", "bad_row"),
        ("s.jsonl:17", "bad_row"),
    ]
    assert drops[13].message == "2 in en, 1 in fr"


def test_without_translation_every_language_must_be_there(tmp_path):
    rows = [{"text_en": "Up. On.", "text_fr": "Haut. Bas."}, {"text_en": "Go. Run."}]
    path, drops = write_jsonl(tmp_path / "s.jsonl", rows), Drops()
    assert len(read(path, languages=["en", "fr"], complete=True, drops=drops)) == 1
    assert [(drop.id, drop.reason) for drop in drops] == [("s.jsonl:2", "missing_language")]


def test_the_number_asked_for_is_of_good_stories(tmp_path):
    rows = [{"text": "One."}, *numbered(3)]
    path, drops = write_jsonl(tmp_path / "s.jsonl", rows), Drops()
    stories = read_stories(
        str(path), split="train", languages=["en"], num_stories=2, validation_share=0, drops=drops
    )
    assert [story.id for story in stories] == ["s-00000001", "s-00000002"]
    assert drops.counts() == {"too_few_sentences": 1}
    assert read(path, num_stories=0) == []


# -- splits --------------------------------------------------------------------------------------------------


def texts_of(stories):
    return {story.texts["en"][0] for story in stories}


def test_a_file_is_divided_by_its_stories_alone(tmp_path):
    rows = numbered(2000)
    one, other = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows[::-1][:1500])
    share = {"validation_share": 0.2, "seed": 3}
    train, validation = texts_of(read(one, **share)), texts_of(read(one, "validation", **share))
    assert len(train) + len(validation) == 2000 and not train & validation
    assert 340 < len(validation) < 460  # 400 +- 3.4 standard deviations
    assert texts_of(read(other, "validation", **share)) <= validation
    assert texts_of(read(other, **share)) <= train
    assert texts_of(read(one, "validation", validation_share=0.2, seed=4)) != validation
    # A larger share only adds.
    assert validation < texts_of(read(one, "validation", validation_share=0.4, seed=3))


def test_equal_stories_never_straddle(tmp_path):
    """Written twice, with other white space, as sentences, and decomposed: one story, in one split."""
    rows = []
    for n in range(200):
        rows += [
            {"text": f"Tom était {n}.  Il dort."},
            {"text": f"Tom e\u0301tait {n}.\nIl dort."},
            {"text_en": [f"Tom était {n}.", "Il dort."]},
        ]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    drops = {"train": Drops(), "validation": Drops()}
    kept = [read(path, split, validation_share=0.5, drops=drops[split]) for split in drops]
    assert sum(map(len, kept)) == 200
    assert sum(each.counts()["duplicate"] for each in drops.values()) == 400
    assert all(each.counts()["duplicate"] > 100 for each in drops.values())


def test_both_splits_agree_on_who_has_an_id_and_on_bad_rows(tmp_path):
    rows = [{"id": n % 300, **row} for n, row in enumerate(numbered(600))]
    path = write_jsonl(tmp_path / "s.jsonl", [*rows, {"other": 1}])
    drops = {"train": Drops(), "validation": Drops()}
    kept = [
        story.id for split in drops for story in read(path, split, validation_share=0.5, drops=drops[split])
    ]
    assert sorted(kept, key=int) == [str(n) for n in range(300)]
    assert drops["train"].counts()["duplicate_id"] + drops["validation"].counts()["duplicate_id"] == 300
    assert drops["train"].counts()["bad_row"] == 1 and "bad_row" not in drops["validation"].counts()


def test_memory_does_not_grow_with_the_source(tmp_path):
    rows = ({"text": [f"Tom had {n} dogs.", "They ran."]} for n in range(12_000))
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    stories = read_stories(str(path), split="train", languages=["en"], validation_share=0, drops=Drops())
    next(stories)
    tracemalloc.start()
    count = sum(1 for _ in stories)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 11_999
    # The table of digests, and half of it again while it doubles; as texts or in a set it would be 1 MB.
    assert peak < 36 * 12_000 + 30_000


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split='test' is not one of"),
        ({"languages": []}, "at least one, each once"),
        ({"languages": ["en", "en"]}, "at least one, each once"),
        ({"languages": ["fr"]}, "source_language='en' is not among"),
        ({"validation_share": 1.0}, "validation_share=1.0 must be at least 0 and below 1"),
        ({"num_stories": -1}, "num_stories=-1 must not be negative"),
        ({"min_sentences": 5, "max_sentences": 4}, "leave no story"),
        ({"num_stories": None}, "say how many with num_stories"),
        ({"languages": ["en", "xx"]}, "does not speak 'xx'"),
    ],
)
def test_arguments_out_of_range(changes, message):
    """At once, not when the first story is asked for."""
    settings = {"split": "train", "languages": ["en"], "num_stories": 2, "drops": Drops(), **changes}
    with pytest.raises(ValueError, match=message):
        read_stories("grammar", **settings)


@pytest.mark.parametrize("source", ["nothing.jsonl", "/no/such/folder", "grammars", "a/b.txt"])
def test_a_source_that_is_not_there(source):
    with pytest.raises(FileNotFoundError, match=r"no story source .* Give 'grammar', a file \(\.txt"):
        read_stories(source, split="train", languages=["en"], drops=Drops())


def test_a_hub_dataset_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="'owner/none' is neither a file or folder here nor"):
        read_stories("owner/none", split="train", languages=["en"], drops=Drops())


def test_strange_files_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "s.csv").write_text("text\n")
    with pytest.raises(ValueError, match="is no story file"):
        read_stories(tmp_path / "s.csv", split="train", languages=["en"], drops=Drops())
    pq.write_table(pa.table({"story": ["A."]}), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['story'\], but neither 'text' nor 'text_en'"):
        read_stories(tmp_path / "s.parquet", split="train", languages=["en"], drops=Drops())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["validation"], "has validation files .* but no training files"),
        (["validation", "train", "more"], "and files of no split"),
        (["test"], "has test files alone"),
        ([], "has no story file"),
    ],
)
def test_folders_whose_splits_are_unclear(tmp_path, names, message):
    for name in names:
        write_jsonl(tmp_path / f"{name}.jsonl", numbered(1))
    with pytest.raises(ValueError, match=message):
        read_stories(tmp_path, split="train", languages=["en"], drops=Drops())


# -- digests -------------------------------------------------------------------------------------------------


def test_the_digest_of_a_file_is_of_its_name_and_content(tmp_path):
    one, other = write_jsonl(tmp_path / "a" / "s.jsonl", numbered(2)), tmp_path / "b" / "s.jsonl"
    write_jsonl(other, numbered(2))
    assert source_digest(one) == source_digest(str(other))
    assert len(source_digest(one)) == 64
    write_jsonl(other, numbered(3))
    assert source_digest(one) != source_digest(other)
    assert source_digest(one) != source_digest(one.rename(tmp_path / "a" / "t.jsonl"))


def test_the_digest_of_a_large_file_is_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_WHOLE_DIGEST_BYTES", 1000)
    monkeypatch.setattr(corpora, "_BLOCK_BYTES", 10)
    path = tmp_path / "s.txt"
    content = bytearray(b"a" * 10_000)
    seen = set()
    for position in (None, 0, 9, 9_999, 9_990):  # the first and the last block are always among them
        if position is not None:
            content[position] ^= 1
        path.write_bytes(content)
        seen.add(source_digest(path))
    path.write_bytes(content[:-10] + b"b" * 5 + content[-10:])
    seen.add(source_digest(path))
    assert len(seen) == 6


def test_the_digest_of_a_folder_is_of_its_story_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", numbered(2))
    before = source_digest(tmp_path)
    (tmp_path / "README.md").touch()
    assert source_digest(tmp_path) == before
    write_jsonl(tmp_path / "b.jsonl", numbered(2))
    assert source_digest(tmp_path) != before


def test_the_digest_of_the_grammar_is_of_its_words(monkeypatch):
    before = source_digest("grammar")
    assert source_digest("grammar") == before
    monkeypatch.setattr(LANGUAGES["fr"], "sad_endings", (*LANGUAGES["fr"].sad_endings[:-1], "Fin."))
    assert source_digest("grammar") != before


def test_other_digests(tmp_path):
    one, other = write_jsonl(tmp_path / "a.jsonl", []), write_jsonl(tmp_path / "b.jsonl", numbered(1))
    assert source_digest({"en": one, "fr": other}) == source_digest({"fr": str(other), "en": str(one)})
    assert source_digest({"en": one, "fr": other}) != source_digest({"en": other, "fr": one})
    assert source_digest("a/b") != source_digest("a/b@v1")
    with pytest.raises(FileNotFoundError, match="no source 'nothing'"):
        source_digest("nothing")
