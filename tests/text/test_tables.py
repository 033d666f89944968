"""CSV and TSV files as people save them."""

import pytest

from hf_clsi.text.tables import read_table


def rows_of(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_line_ends_and_delimiters(tmp_path, end, delimiter):
    lines = ["a|b", "1|2", "", "3|4|", "||", "5|6"]
    rows = rows_of(tmp_path, end.join(lines).replace("|", delimiter))
    assert [row.columns for row in rows] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]
    assert [row.where for row in rows] == ["t.csv:2", "t.csv:4", "t.csv:6"]


def test_the_header_decides_on_the_delimiter(tmp_path):
    (row,) = rows_of(tmp_path, "a;b\nOne, two, three;four, five\n")
    assert row.columns == {"a": "One, two, three", "b": "four, five"}


def test_quotes_of_csv(tmp_path):
    rows = rows_of(tmp_path, 'a,b\n"He said ""No, Tom!""", "x"\nIt was "nice",y\n"two\nlines",z\nw,\n')
    assert [row.columns["a"] for row in rows] == ['He said "No, Tom!"', 'It was "nice"', "two\nlines", "w"]
    assert [row.columns["b"] for row in rows] == ["x", "y", "z", ""]
    assert [row.where for row in rows] == ["t.csv:2", "t.csv:3", "t.csv:4", "t.csv:6"]


def test_bare_quotes_of_tsv_do_not_run_on(tmp_path):
    rows = rows_of(tmp_path, 'a\tb\n"Hi!" he said.\t"Oh\n"a ""b"" c"\t"d"\n', "t.tsv")
    assert [row.columns for row in rows] == [
        {"a": '"Hi!" he said.', "b": '"Oh'},
        {"a": 'a "b" c', "b": "d"},
    ]


def test_rows_of_another_width_are_bad(tmp_path):
    short, long, good, open_quote = rows_of(tmp_path, 'a,b\n1\n1,2,3\n4,5\n"6,7\n8,9\n')
    assert short.columns is None and short.fault == "line 2: 1 cells, the header has 2"
    assert long.fault == "line 3: 3 cells, the header has 2"
    assert good.columns == {"a": "4", "b": "5"}
    assert open_quote.fault == "lines 5 to 6 (is a quote left open?): 1 cells, the header has 2"


def test_a_quote_that_swallows_the_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv, from line 2 on: .* quote"):
        rows_of(tmp_path, 'a,b\n"1,2\n' + "3,4\n" * 50_000)


def test_encodings(tmp_path):
    assert rows_of(tmp_path, b"\xef\xbb\xbfa,b\n\xc3\xa9,2\n")[0].columns == {"a": "é", "b": "2"}
    with pytest.warns(UserWarning, match="is not UTF-8 .* read as Windows-1252"):
        assert rows_of(tmp_path, b"a,b\n\xe9\x92t\xe9,2\n")[0].columns == {"a": "é’té", "b": "2"}
    with pytest.raises(ValueError, match="neither UTF-8 nor Windows-1252"):
        rows_of(tmp_path, b"a,b\n\xe9\x81,2\n")
