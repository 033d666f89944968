"""Corpora on disk: what is read back is what was written, from every source; what cannot be used is named."""

import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clsi.batches.interleave import story_key
from hf_clsi.rows.schema import story_columns
from hf_clsi.rows.shards import write_shards
from hf_clsi.training.stories import (
    DatasetStories,
    IterableStories,
    JoinedStories,
    MappedStories,
    ParquetStories,
    StoryIds,
    StoryReader,
    join_tables,
    listed_table,
    open_stories,
    story_lengths,
    take_stories,
)
from hf_clsi.units.merges import UnitMerges

# Units 0-9 are English, 10-19 French. b has no French.
ROWS = [
    {"story_id": "a", "units_en": [[1, 1, 2], [3]], "units_fr": [[11], [12, 12]]},
    {"story_id": "b", "units_en": [[4, 5]], "units_fr": None},
    {"story_id": "ç", "units_en": [[6, 6], [7], [8]], "units_fr": [[13], [14, 14], [15]]},
]
MERGES = UnitMerges(20, [(1, 2)], deduplicate=True)  # 20 = "1 2"


def parquet(path, rows, group=2, kind=None):
    """A Parquet file of these rows, `group` rows a row group."""
    columns = {"story_id": pa.array([row["story_id"] for row in rows], pa.string())}
    for name in dict.fromkeys(key for row in rows for key in row if key != "story_id"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.list_(pa.list_(kind or pa.uint16())))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def folder_of(path, shards, config="units", split="train"):
    """A dataset folder in the package's layout."""
    for index, rows in enumerate(shards):
        parquet(path / config / f"{split}-{index:05d}-of-{len(shards):05d}.parquet", rows)
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: " + config + "\n  data_files:\n  - split: " + split
        + f"\n    path: {config}/{split}-*.parquet\n---\n"
    )  # fmt: skip
    return path


def many(count, languages=("en", "fr"), seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        sentences = random.integers(1, 5)
        rows.append({"story_id": f"story-{seed}-{index}"})
        for number, code in enumerate(languages):
            rows[-1][f"units_{code}"] = [
                random.integers(10 * number, 10 * number + 10, random.integers(1, 6)).tolist()
                for _ in range(sentences)
            ]
    return rows


def sentences(columns, story):
    """{language: lists} of one story; absent languages left out."""
    found = {}
    for code, column in columns.items():
        bounds = column.row_offsets[story : story + 2].tolist()
        found[code] = [
            column.units[slice(*column.sentence_offsets[i : i + 2].tolist())].tolist() for i in range(*bounds)
        ]
    return {code: lists for code, lists in found.items() if lists}


def content(table):
    """Everything that a table says, as plain values."""
    return [
        (table.ids[i], sentences(table.columns, i), sentences(table.units, i), int(table.story_keys[i]))
        for i in range(len(table))
    ]


def test_a_corpus_is_mapped_as_it_was_written(tmp_path):
    stories = open_stories(
        folder_of(tmp_path / "data", [ROWS]), ["en", "fr"], num_units=20, cache_dir=tmp_path / "cache",
        progress=False,
    )  # fmt: skip
    assert content(stories.table) == [
        ("a", {"en": [[1, 1, 2], [3]], "fr": [[11], [12, 12]]}, {}, story_key("a")),
        ("b", {"en": [[4, 5]]}, {}, story_key("b")),
        ("ç", {"en": [[6, 6], [7], [8]], "fr": [[13], [14, 14], [15]]}, {}, story_key("ç")),
    ]
    assert stories.table.raw and stories.corpus_tokens() == {"en": 10, "fr": 7}


def test_merged_and_deduplicated_tokens_stand_beside_the_units(tmp_path):
    stories = open_stories(
        folder_of(tmp_path / "data", [ROWS]), ["en", "fr"], merges=MERGES, cache_dir=tmp_path / "cache",
        progress=False,
    )  # fmt: skip
    assert content(stories.table)[0] == (
        "a", {"en": [[20], [3]], "fr": [[11], [12]]}, {"en": [[1, 1, 2], [3]], "fr": [[11], [12, 12]]},
        story_key("a"),
    )  # fmt: skip
    assert not stories.table.raw and stories.corpus_tokens() == {"en": 7, "fr": 5}


def test_merging_is_that_of_the_merges(tmp_path):
    rows = many(50)
    merges = UnitMerges.learn(
        [np.array(s, np.uint16) for row in rows for s in row["units_en"]], 20, 5, show_progress=False
    )
    table = open_stories(
        folder_of(tmp_path / "data", [rows]), ["en"], merges=merges, cache_dir=tmp_path, progress=False
    ).table
    for index, row in enumerate(rows):
        expected = merges.encode([np.array(s, np.uint16) for s in row["units_en"]])
        assert sentences(table.columns, index)["en"] == [tokens.tolist() for tokens in expected]


def test_all_languages_are_views_of_one_mapped_array(tmp_path):
    """So that batches in several languages are cut without copying (StoryTable.read)."""
    stories = open_stories(
        folder_of(tmp_path / "d", [ROWS]), ["en", "fr"], cache_dir=tmp_path, progress=False
    )
    columns = stories.table.columns
    assert columns["en"].units is columns["fr"].units
    assert isinstance(columns["en"].units.base, np.memmap) and not columns["en"].units.flags.writeable


def test_every_source_gives_the_same_blocks(tmp_path):
    """Blocks end with shards, not with row groups (of 2), wherever one begins."""
    from datasets import load_dataset

    shards = [many(7), many(5, seed=1), many(1, seed=2)]
    folder = folder_of(tmp_path / "data", shards)
    reader = StoryReader(["en", "fr"], num_units=20)
    local = open_stories(folder, ["en", "fr"], num_units=20, streaming=True)
    assert isinstance(local, ParquetStories) and local.num_shards == 3
    sources = {
        "parquet": local,
        "streamed": IterableStories(
            load_dataset(str(folder), "units", split="train", streaming=True), reader
        ),
        "map-style": DatasetStories(
            load_dataset(str(folder), "units", split="train", cache_dir=str(tmp_path / "hf")), reader,
            [0, 7, 12, 13],
        ),
        "mapped": MappedStories.build(local, tmp_path / "cache", progress=False),
    }  # fmt: skip
    expected = {
        (shard, block): [row["story_id"] for row in rows[3 * block : 3 * block + 3]]
        for shard, rows in enumerate(shards)
        for block in range(-(-len(rows) // 3))
    }
    first = {}
    for name, source in sources.items():
        assert source.num_shards == 3
        assert source.languages_of(1) == {"en", "fr"}
        for shard in range(3):
            blocks = [content(block) for block in source.blocks(shard, size=3)]
            for number, block in enumerate(blocks):
                assert [entry[0] for entry in block] == expected[shard, number], name
                assert first.setdefault((shard, number), block) == block, name
            for start in range(len(blocks) + 1):
                later = [content(block) for block in source.blocks(shard, start, 3)]
                assert later == blocks[start:], (name, shard, start)
    assert set(first) == set(expected)


def test_row_groups_before_a_block_are_not_read(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", many(10), group=2)
    asked = []
    read = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, **kwargs):
        asked.extend(row_groups)
        return read(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    blocks = list(ParquetStories([path], StoryReader(["en"])).blocks(0, start=2, size=3))
    assert [len(block) for block in blocks] == [3, 1]
    assert asked == [3, 4]


def test_audio_and_text_beside_the_units_are_not_read(tmp_path, monkeypatch):
    columns = story_columns(["en", "fr"], audio=False)
    rows = [{**row, "speaker": "s", "text_en": ["x"] * len(row["units_en"])} for row in many(4)]
    rows = [{**row, "text_fr": row["text_en"]} for row in rows]
    write_shards(rows, tmp_path / "data", "train", columns=columns)
    names = []
    read = pq.ParquetFile.iter_batches

    def spy(self, *args, columns, **kwargs):
        names.append(columns)
        return read(self, *args, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    stories = open_stories(tmp_path / "data", ["fr"], cache_dir=tmp_path, progress=False)
    assert names == [["story_id", "units_fr"]]
    assert sentences(stories.table.columns, 3) == {"fr": rows[3]["units_fr"]}


def test_corpora_in_different_languages_are_one(tmp_path):
    """As in the paper: one dataset in English alone, one in English and French."""
    english, both = many(4, ["en"]), many(3, seed=1)
    folders = [folder_of(tmp_path / "en", [english[:2], english[2:]]), folder_of(tmp_path / "both", [both])]
    stories = open_stories(folders, ["en", "fr"], cache_dir=tmp_path, progress=False)
    streamed = open_stories(folders, ["en", "fr"], streaming=True)
    assert isinstance(streamed, JoinedStories)
    for source in (stories, streamed):
        assert [sorted(source.languages_of(shard)) for shard in range(3)] == [["en"], ["en"], ["en", "fr"]]
    assert [entry[0] for entry in content(stories.table)] == [row["story_id"] for row in english + both]
    lengths, places = story_lengths(stories.table, ["en", "fr"], ["en", "fr"])
    assert places.tolist() == [4, 5, 6]
    assert lengths.keys.tolist() == [story_key(row["story_id"]) for row in both]
    assert lengths.tokens["fr"].tolist() == [len(s) for row in both for s in row["units_fr"]]
    lengths, places = story_lengths(stories.table, ["en"], ["en"])
    assert places.tolist() == list(range(7))
    assert lengths.per_story("en").tolist() == [sum(map(len, row["units_en"])) for row in english + both]


def test_lengths_of_a_language_that_is_not_needed_are_zero(tmp_path):
    stories = open_stories(
        folder_of(tmp_path / "d", [ROWS]), ["en", "fr"], cache_dir=tmp_path, progress=False
    )
    lengths, places = story_lengths(stories.table, ["en", "fr"], ["en"])
    assert places.tolist() == [0, 1, 2]
    assert lengths.offsets.tolist() == [0, 2, 3, 6]
    assert lengths.tokens["fr"].tolist() == [1, 2, 0, 1, 2, 1]
    with pytest.raises(ValueError, match="none of the 3 stories is in de"):
        story_lengths(stories.table, ["en"], ["de"])


FAULTS = {
    "no sentence in any language": {"units_en": None, "units_fr": []},
    "different numbers of sentences": {"units_en": [[1], [2]], "units_fr": [[11]]},
    "an empty sentence in fr": {"units_en": [[1], [2]], "units_fr": [[11], []]},
    "an empty sentence in en": {"units_en": [[1], None], "units_fr": [[11], [12]]},
    "units outside 0..19 in en": {"units_en": [[1, 20]], "units_fr": [[11]]},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_faulty_rows_are_refused_by_id_or_counted(tmp_path, reason):
    rows = [ROWS[0], {"story_id": "bad", **FAULTS[reason]}, ROWS[2]]
    folder = folder_of(tmp_path / "data", [rows])
    settings = {"num_units": 20, "cache_dir": tmp_path / "cache", "progress": False}
    with pytest.raises(ValueError, match=f"story 'bad': {reason}"):
        open_stories(folder, ["en", "fr"], **settings)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]  # nothing half-written
    with pytest.raises(ValueError, match=f"story 'bad': {reason}"):
        next(open_stories(folder, ["en", "fr"], streaming=True, num_units=20).blocks(0))
    for _ in range(2):  # made, then opened
        stories = open_stories(folder, ["en", "fr"], faulty="leave_out", **settings)
        assert stories.left_out.counts == {reason: 1} and stories.left_out.examples == {reason: ["bad"]}
        assert [entry[1] for entry in content(stories.table)] == [
            {"en": ROWS[0]["units_en"], "fr": ROWS[0]["units_fr"]},
            {},  # it keeps its place, so that blocks are the same everywhere
            {"en": ROWS[2]["units_en"], "fr": ROWS[2]["units_fr"]},
        ]
        assert story_lengths(stories.table, ["en"], ["en"])[1].tolist() == [0, 2]


def test_negative_and_missing_units_of_foreign_writers_are_found(tmp_path):
    for units in ([[1, -1]], [[1, None]], [[70_000]]):
        rows = [{"story_id": "x", "units_en": [[3]]}, {"story_id": "y", "units_en": units}]
        path = parquet(tmp_path / "f.parquet", rows, kind=pa.int64())
        with pytest.raises(ValueError, match=r"story 'y': units outside 0\.\.65535 in en"):
            next(ParquetStories([path], StoryReader(["en"])).blocks(0))


def test_rows_without_an_id_and_other_columns_are_refused(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"story_id": None, "units_en": [[1]]}])
    with pytest.raises(ValueError, match=r"story 'row 0 of a.parquet from row 0': no story_id"):
        next(ParquetStories([path], StoryReader(["en"])).blocks(0))
    with pytest.raises(ValueError, match=r"has the columns story_id, units_en; .* one of units_de"):
        next(ParquetStories([path], StoryReader(["de"])).blocks(0))
    pq.write_table(pa.table({"story_id": ["a"], "units_en": [[1, 2]]}), path)
    with pytest.raises(ValueError, match=r"units_en holds list<.*; units are lists of lists of integers"):
        next(ParquetStories([path], StoryReader(["en"])).blocks(0))


def test_a_cache_is_written_once_for_data_and_vocabulary(tmp_path, monkeypatch):
    folder, cache = folder_of(tmp_path / "data", [many(5)]), tmp_path / "cache"
    made = []
    blocks = ParquetStories.blocks
    monkeypatch.setattr(ParquetStories, "blocks", lambda *a: made.append(1) or blocks(*a))

    def opened(**changes):
        before = len(made)
        settings = {"languages": ["en", "fr"], "num_units": 20, **changes}
        stories = open_stories(folder, cache_dir=cache, progress=False, **settings)
        return stories.folder, len(made) > before

    first, new = opened()
    assert new and opened() == (first, False)
    for changes in (
        {"languages": ["en"]},
        {"num_units": 19 + 2},
        {"merges": MERGES},
        {"faulty": "leave_out"},
    ):
        other, new = opened(**changes)
        assert new and other != first
    parquet(folder / "units" / "train-00000-of-00001.parquet", many(6))
    other, new = opened()
    assert new and other != first


def _open(arguments):
    folder, cache = arguments
    stories = open_stories(folder, ["en", "fr"], cache_dir=cache, progress=False)
    return os.stat(stories.folder / "units.npy").st_ino


def test_processes_that_open_at_once_share_one_cache(tmp_path):
    folder = folder_of(tmp_path / "data", [many(300), many(300, seed=1)])
    with multiprocessing.get_context("fork").Pool(3) as pool:
        files = pool.map(_open, [(folder, tmp_path / "cache")] * 3, chunksize=1)
    assert len(set(files)) == 1
    names = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert len(names) == 1


def test_a_writer_that_was_killed_leaves_nothing_that_is_taken_for_a_cache(tmp_path, monkeypatch):
    folder, cache = folder_of(tmp_path / "data", [many(5)]), tmp_path / "cache"
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # no tidying, as after kill -9
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_stories(folder, ["en"], cache_dir=cache, progress=False)
    left = [path for path in cache.iterdir() if path.name.endswith(".partial")]
    assert len(left) == 1 and (left[0] / "stories.json").is_file()
    monkeypatch.undo()
    assert len(open_stories(folder, ["en"], cache_dir=cache, progress=False)) == 5
    assert not left[0].exists()


def test_damaged_and_foreign_caches_are_refused(tmp_path):
    folder, cache = folder_of(tmp_path / "data", [many(5)]), tmp_path / "cache"
    good = open_stories(folder, ["en", "fr"], merges=MERGES, cache_dir=cache, progress=False).folder
    kept = tmp_path / "kept"
    shutil.copytree(good, kept)

    def refused(message):
        with pytest.raises(ValueError, match=message):
            open_stories(folder, ["en", "fr"], merges=MERGES, cache_dir=cache, progress=False)
        shutil.rmtree(good)
        shutil.copytree(kept, good)

    for name in ("units", "tokens", "ids", "keys", "stories_en", "tokens_fr"):
        (good / f"{name}.npy").write_bytes((kept / f"{name}.npy").read_bytes()[:-2])
        refused(f"damaged: {name}.npy cannot be mapped")
    np.save(good / "keys.npy", np.zeros(5))
    refused(r"keys.npy holds float64 \(5,\), not uint64 \(5,\)")
    np.save(good / "keys.npy", np.zeros(5, np.uint64))
    refused("its arrays do not fit together")
    (good / "units_en.npy").unlink()
    refused("units_en.npy cannot be mapped")
    (good / "stories.json").write_text("{}")
    refused("is no story cache of this version")
    index = json.loads((kept / "stories.json").read_text())
    index["source"] = ["another file"]
    (good / "stories.json").write_text(json.dumps(index))
    refused("was made from other data or another vocabulary")
    assert len(open_stories(folder, ["en", "fr"], merges=MERGES, cache_dir=cache, progress=False)) == 5


def test_another_process_maps_the_files_instead_of_getting_copies(tmp_path):
    stories = open_stories(folder_of(tmp_path / "d", [many(200)]), ["en"], cache_dir=tmp_path, progress=False)
    pickled = pickle.dumps(stories)
    assert len(pickled) < 500
    assert content(pickle.loads(pickled).table) == content(stories.table)


def test_the_config_that_is_read(tmp_path):
    folder = folder_of(tmp_path / "d", [many(2)], config="other")
    assert (
        open_stories(folder, ["en"], streaming=True).paths[0].endswith("/other/train-00000-of-00001.parquet")
    )
    folder_of(folder, [many(2)], config="second")
    with pytest.raises(ValueError, match="has the configs other, second; training reads 'units'"):
        open_stories(folder, ["en"], streaming=True)
    folder_of(folder, [many(2)], config="units")
    assert (
        open_stories(folder, ["en"], streaming=True).paths[0].endswith("/units/train-00000-of-00001.parquet")
    )
    with pytest.raises(FileNotFoundError, match="has no split 'test'"):
        open_stories(folder, ["en"], split="test", streaming=True)
    with pytest.raises(FileNotFoundError, match="there is no dataset folder"):
        open_stories(tmp_path / "nothing", ["en"])


def test_files_in_another_layout_are_those_that_datasets_finds(tmp_path):
    """Parquet is then read by us, other formats through datasets."""
    parquet(tmp_path / "p" / "train.parquet", many(5))
    source = open_stories(tmp_path / "p", ["en", "fr"], streaming=True)
    assert isinstance(source, ParquetStories)
    assert [entry[0] for entry in content(next(source.blocks(0)))] == [f"story-0-{i}" for i in range(5)]
    (tmp_path / "j").mkdir()
    with open(tmp_path / "j" / "train.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in many(5))
    source = open_stories(tmp_path / "j", ["en", "fr"], streaming=True)
    assert isinstance(source, IterableStories)
    mapped = open_stories(tmp_path / "j", ["en", "fr"], cache_dir=tmp_path / "cache", progress=False)
    assert content(mapped.table) == content(next(source.blocks(0)))
    assert [entry[1] for entry in content(mapped.table)] == [
        {"en": row["units_en"], "fr": row["units_fr"]} for row in many(5)
    ]


def test_files_on_the_hub_are_read_in_place(tmp_path, monkeypatch):
    """Through HfFileSystem, here one that serves a local file."""
    path = parquet(tmp_path / "a.parquet", many(5))
    address = f"hf://datasets/clsi/x@{'0' * 40}/units/train-00000-of-00001.parquet"
    files = []

    class Files:
        def open(self, name, mode):
            assert (name, mode) == (address, "rb")
            files.append(path.open("rb"))
            return files[-1]

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Files)
    remote = ParquetStories([address], StoryReader(["en", "fr"]))
    local = ParquetStories([path], StoryReader(["en", "fr"]))
    read = [[content(block) for block in source.blocks(0, 1, 2)] for source in (remote, local)]
    assert read[0] == read[1]
    assert len(MappedStories.build(remote, tmp_path, progress=False)) == 5
    assert files and all(file.closed for file in files)


def test_tables_are_cut_and_joined(tmp_path):
    table = open_stories(
        folder_of(tmp_path / "d", [ROWS]), ["en", "fr"], merges=MERGES, cache_dir=tmp_path, progress=False
    ).table
    whole = content(table)
    taken = take_stories(table, np.array([2, 0, 2]))
    assert content(taken) == [whole[2], whole[0], whole[2]]
    assert content(join_tables([taken, take_stories(table, np.array([1]))])) == [
        whole[2], whole[0], whole[2], whole[1],
    ]  # fmt: skip


def test_stories_in_memory_become_a_table():
    units = {"en": [[np.array([1, 1]), np.array([2])], [np.array([3])]]}
    tokens = {"en": [[np.array([1]), np.array([2])], [np.array([3])]]}
    table = listed_table(["a", "b"], tokens, units)
    assert content(table) == [
        ("a", {"en": [[1], [2]]}, {"en": [[1, 1], [2]]}, story_key("a")),
        ("b", {"en": [[3]]}, {"en": [[3]]}, story_key("b")),
    ]
    same = listed_table(["a", "b"], units, units)
    assert same.columns["en"] is same.units["en"] and not same.raw


def test_ids_are_read_one_by_one():
    blob = np.frombuffer("açé".encode(), dtype=np.uint8)
    ids = StoryIds(blob, np.array([0, 1, 3, 5]))
    assert list(ids) == ["a", "ç", "é"] and ids[-1] == "é" and list(ids[1:]) == ["ç", "é"]
    with pytest.raises(IndexError):
        ids[3]
    with pytest.raises(ValueError, match="steps of 1"):
        ids[::2]


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="a list of different codes"):
        StoryReader("en")
    with pytest.raises(ValueError, match="faulty must be one of refuse, leave_out"):
        StoryReader(["en"], faulty="drop")
    with pytest.raises(ValueError, match="num_units is 5, but the merges were learned on 20"):
        StoryReader(["en"], MERGES, 5)
    with pytest.raises(ValueError, match="there is no dataset to read"):
        open_stories([], ["en"])
