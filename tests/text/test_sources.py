"""Files and Hub datasets as rows: what is bad is told, what is broken is refused."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clsi.text import sources
from hf_clsi.text.sources import hub_configs, open_hub, parse_hub_id, read_rows, story_files


def rows_of(tmp_path, name, content, columns=None):
    path = tmp_path / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return list(read_rows(path, columns))


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz"])
def test_text_between_end_markers(tmp_path, name):
    rows = rows_of(tmp_path, name, "One.\nTwo.\n<|endoftext|>\n\r\n  <|endoftext|> \r\nThree.\n\n")
    assert [row.columns["text"].strip() for row in rows] == ["One.\nTwo.", "", "Three."]
    assert [row.where for row in rows] == [f"{name}:1", f"{name}:4", f"{name}:6"]


def test_nothing_after_the_last_marker_is_no_story(tmp_path):
    assert len(rows_of(tmp_path, "t.txt", "One.\n<|endoftext|>\n \n")) == 1
    assert rows_of(tmp_path, "t.txt", "") == []


def test_text_that_is_not_utf8_is_one_bad_row(tmp_path):
    rows = rows_of(tmp_path, "t.txt", b"\xef\xbb\xbfA\n<|endoftext|>\nB\n\xe9\n<|endoftext|>\nC\n")
    assert [row.columns and row.columns["text"] for row in rows] == ["A\n", None, "C\n"]
    assert rows[1].where == "t.txt:3" and rows[1].fault.startswith("not UTF-8")


def test_text_without_markers_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_LONGEST_STORY", 1000)
    assert len(rows_of(tmp_path, "t.txt", ("a\n" * 400 + "<|endoftext|>\n") * 5)) == 5
    for content in ("a\n" * 600, "a" * 2000):
        with pytest.raises(ValueError, match=r"no line <\|endoftext\|> in the 1,000 bytes after line 1"):
            rows_of(tmp_path, "t.txt", content)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_json_lines(tmp_path, name):
    lines = ['{"text": "é"}', "", "[1]", "{", '{"text": "\\ud83d"}', '{"text": "\\ud83d\\ude00"}', '{"a": 1}']
    rows = rows_of(tmp_path, name, "\n".join(lines))
    assert [row.columns for row in rows] == [{"text": "é"}, None, None, None, {"text": "😀"}, {"a": 1}]
    assert [row.where for row in rows] == [f"{name}:{line}" for line in (1, 3, 4, 5, 6, 7)]
    assert [row.fault[:16] for row in rows if row.columns is None] == [
        "not an object bu",
        "not JSON in UTF-",
        "half of a surrog",
    ]


def test_a_bad_line_of_json_does_not_take_the_next_with_it(tmp_path):
    rows = rows_of(tmp_path, "t.jsonl", b'{"a": "\xe9"}\n{"a": 1}\n' + b"[" * 100_000 + b"\n{}\n")
    assert [row.columns for row in rows] == [None, {"a": 1}, None, {}]


def test_parquet_columns_and_bad_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BATCH_ROWS", 2)
    bad = pa.Array.from_buffers(  # a string column whose third value is not UTF-8
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"AB\xe9")]
    )
    pq.write_table(pa.table({"text": bad, "other": [1, 2, 3]}), tmp_path / "t.parquet")
    rows = list(read_rows(tmp_path / "t.parquet", ["id", "text"]))
    assert [row.columns for row in rows] == [{"text": "A"}, {"text": "B"}, None]
    assert [row.where for row in rows] == ["t.parquet:1", "t.parquet:2", "t.parquet:3"]
    assert rows[2].fault.startswith("not UTF-8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1 nothing", "not a Parquet file, or is cut short"),
        ("t.csv", b"a", "is no story file: its name must end in one of .txt"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, name, content)


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b'{"a": 1}\n' * 9999)[:-20]])
def test_broken_gzip_is_refused(tmp_path, content):
    (tmp_path / "t.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match="is not a gzip file, or is cut short"):
        list(read_rows(tmp_path / "t.jsonl.gz"))


def test_a_damaged_parquet_page_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["abcdefgh"] * 5000}), path, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged after row 0"):
        list(read_rows(path))


def test_a_folder_holds_files_of_one_kind(tmp_path):
    with pytest.raises(ValueError, match="has no story file"):
        story_files(tmp_path)
    for name in ("b.txt", "a.txt.gz", ".hidden.jsonl", "README.md"):
        (tmp_path / name).touch()
    (tmp_path / "c.txt").mkdir()
    assert [path.name for path in story_files(tmp_path)] == ["a.txt.gz", "b.txt"]
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match="two files 'a', one of them packed"):
        story_files(tmp_path)
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(ValueError, match=r"files of several kinds, \.jsonl, \.txt"):
        story_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("roneneldan/TinyStories", ("roneneldan/TinyStories", None)),
        ("a/b@refs/convert/parquet", ("a/b", "refs/convert/parquet")),
        ("a/b.txt", None),
        ("a/b.csv", None),
        ("a/b/c", None),
        ("./a/b", None),
        ("TinyStories", None),
    ],
)
def test_hub_ids(source, expected):
    assert parse_hub_id(source) == expected


def test_the_hub_out_of_reach_is_a_file_not_found():
    """The suite is offline: this is what datasets itself raises there."""
    for ask in (open_hub, hub_configs):
        with pytest.raises(
            FileNotFoundError, match=r"'no-such/dataset' is neither a file or folder here nor"
        ):
            ask("no-such/dataset")


def test_a_dataset_with_a_script_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "old.py").write_text("raise SystemExit('this must never run')\n")
    with pytest.raises(ValueError, match=r"old\.py@refs/convert/parquet"):
        open_hub(str(tmp_path / "old.py"))


def test_hub_splits_and_configs_of_a_local_copy(tmp_path):
    for config in ("en", "ru"):
        (tmp_path / config).mkdir()
        for split in ("train", "test"):
            line = json.dumps({"text": f"{config} {split}"})
            (tmp_path / config / f"{split}.jsonl").write_text(line + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_dir: en\n- config_name: ru\n  data_dir: ru\n---\n"
    )
    assert sorted(hub_configs(str(tmp_path))) == ["en", "ru"]
    splits = open_hub(str(tmp_path), config="ru")
    assert {split: list(rows) for split, rows in splits.items()} == {
        "train": [{"text": "ru train"}],
        "test": [{"text": "ru test"}],
    }
