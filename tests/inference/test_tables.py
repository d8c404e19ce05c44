from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import tables
from inference.tables import Reading, as_text, csv_chunks, id_mismatch, lines_of, read_csv_file
from utils import InputError

TEXT = {"id": "str", "word": "str"}
PLAIN = [["007", 1.5, "a"], ["8", 2.5, "b"]]
HEADER = b"id,number,word\n"


def read(path, repairs=None, **more):
    return read_csv_file(path, Reading(TEXT, repairs=repairs, **more))


def cells_of(frame):
    return frame.astype(object).where(frame.notna(), None).to_numpy().tolist()


@pytest.fixture
def table(tmp_path):
    """``table(content)``: the path of a CSV file of these bytes."""

    def write(content):
        (tmp_path / "table.csv").write_bytes(content)
        return tmp_path / "table.csv"

    return write


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"007,1.5,a\n8,2.5,b\n",
        HEADER + b"007,1.5,a\n8,2.5,b",
        HEADER + b"007,1.5,a,\n8,2.5,b,\n",
        HEADER + b"007,1.5,a,, ,\n8,2.5,b\n",
        b"id,number,word,\n007,1.5,a\n8,2.5,b,\n",
        b"\n \n" + HEADER + b"\n007,1.5,a\n,,\n\n8,2.5,b\n\n",
        (HEADER + b"007,1.5,a\n8,2.5,b\n").replace(b"\n", b"\r\n"),
        (HEADER + b"007,1.5,a\n8,2.5,b\n").replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + HEADER + b"007,1.5,a\n8,2.5,b\n",
        b'\xef\xbb\xbf"id","number","word"\n"007","1.5","a"\n"8","2.5","b"\n',
        (HEADER + b"007,1.5,a\n8,2.5,b\n").decode().encode("utf-16"),
        b"\xfe\xff" + (HEADER + b"007,1.5,a\n8,2.5,b\n").decode().encode("utf-16-be"),
    ],
    ids=[
        "plain",
        "cut-newline",
        "comma",
        "commas",
        "comma-in-header",
        "blank",
        "crlf",
        "cr",
        "bom",
        "quotes",
        "utf-16",
        "utf-16-be",
    ],
)
def test_one_table_however_it_is_written(table, content):
    path, repairs = table(content), Counter()
    for frame in (read(path), read(path, repairs), *csv_chunks(path, Reading(TEXT), 5)):
        assert list(frame) == ["id", "number", "word"]
        assert cells_of(frame) == PLAIN
    assert not repairs
    assert [len(frame) for frame in csv_chunks(path, Reading(TEXT), 1)] == [1, 1]


#: Content after the header; what training says; what the kernel reads and counts.
WRONG = {
    "long": (b"007,1.5,a,x\n8,2.5,b\n", "line 2 has 4 cells", PLAIN, {"rows_too_long": 1}),
    "short": (b"007,1.5,a\n8,2.5\n", "line 3 has 2 cells", [PLAIN[0], ["8", 2.5, None]], {"rows_too_short": 1}),
    "cut": (b"007,1.5,a\n8,2", "line 3: the file ends", [PLAIN[0], ["8", None, None]], {"rows_too_short": 1}),
    "cut quote": (b'007,1.5,a\n8,2.5,"b', "line 3: a quote", PLAIN, {"rows_with_open_quote": 1}),
    "open quote": (b'"007,1.5,a\n8,2.5,b\n', "line 2: a quote", PLAIN, {"rows_with_open_quote": 1}),
    "quotes": (b'"007,1.5,a\n8,2.5,"b"\n', "line 2: a quote", PLAIN, {"rows_with_open_quote": 1}),
    "byte": (
        b"007,1.5,a\n8,2.5,b\n9,3.5,\xe9t\xe9\n",
        "line 4, column 'word'",
        [*PLAIN, ["9", 3.5, None]],
        {"cells_not_decoded": 1},
    ),
    "byte in id": (b"\xff7,1.5,a\n", "line 2, column 'id': character 1", [[None, 1.5, "a"]], {"cells_not_decoded": 1}),
    "zeros": (b"007,1.5,a\n8,\0\0,b\n", "line 3, column 'number'", [PLAIN[0], ["8", None, "b"]], {"cells_not_decoded": 1}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_a_sentence_in_training_and_a_count_in_the_kernel(table, kind):
    content, sentence, cells, counts = WRONG[kind]
    path, repairs = table(HEADER + content), Counter()
    with pytest.raises(InputError, match=rf"table\.csv.*{sentence}"):
        read(path)
    assert cells_of(read(path, repairs)) == cells
    assert repairs == counts


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("line_end", ["\r", "\n"])
def test_a_line_end_in_quotes_belongs_to_its_cell(table, end, line_end):
    rows = ["id,number,word", f'007,1.5,"a{end}b"', "8,2.5,b", ""]
    path = table(line_end.join(rows).encode())
    for frame in (read(path), read(path, Counter()), *csv_chunks(path, Reading(TEXT), 5)):
        assert cells_of(frame) == [["007", 1.5, f"a{end}b"], PLAIN[1]]
    assert len(lines_of(path)) == 2


def test_a_cell_longer_than_the_csv_module_reads_is_no_defect(table):
    path, repairs = table(HEADER + b'007,1.5,a\n8,"' + b"x" * 140_000 + b',b",0\n9\n'), Counter()
    with pytest.raises(InputError, match="line 3"):
        read(path)
    assert read(path, repairs)["id"].tolist() == ["007", "8", "9"]
    assert repairs["rows_with_open_quote"] == 1


def test_a_column_that_is_there_twice_is_refused_or_counts_once(table):
    path, repairs = table(b"id,word,id\n1,a,2\n"), Counter()
    with pytest.raises(InputError, match="line 1 has column 'id' twice"):
        read(path)
    assert cells_of(read(path, repairs, columns=frozenset(["id", "word"]))) == [["1", "a"]]
    assert repairs == {"duplicated_columns": 1}


@pytest.mark.parametrize("content", [b"", b"\n\n", b",,,\n1,2\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_file_without_a_header_is_refused(table, content):
    for repairs in (None, Counter()):
        with pytest.raises(InputError, match="cannot be read as CSV"):
            read(table(content), repairs)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match="give the folder that holds it"):
            read(path)


def test_lines_are_those_of_an_editor(table):
    path = table(b'id,number,word\n\n1,1,"a\n\nb"\n,,\n2,2,c\r\n\r\n3,3,d')
    assert lines_of(path).tolist() == [3, 7, 9]
    assert read(path)["word"].tolist() == ["a\n\nb", "c", "d"]
    assert lines_of(table(b"1,2\n\n3,4\n"), header=False).tolist() == [1, 3]


def test_a_table_without_header_has_numbered_columns(table):
    frame = read_csv_file(table(b"a,0,\nb,1\n"), Reading("str", header=False))
    assert list(frame) == [0, 1]
    assert cells_of(frame) == [["a", "0"], ["b", "1"]]


def test_blocks_may_end_anywhere(table, monkeypatch):
    text = HEADER + b"".join(b'%d,%d.5,"w, \n ""%d"""\r\n' % (row, row, row) for row in range(40))
    expected = cells_of(read(table(text)))
    for size in (64, 65, 77, 100):
        monkeypatch.setattr(tables, "SCAN_BLOCK", size)
        assert tables._is_regular(table(text), "utf-8")
        assert cells_of(read(table(text))) == expected
    assert expected[7] == ["7", 7.5, 'w, \n "7"']


CELL = st.text(st.sampled_from('ab7. ,"\n\r\0é'), max_size=5)


def test_a_header_that_ends_in_an_empty_name_has_one_column_less(table):
    frame = read(table(b"id,\na,1\n"), Counter())
    assert frame.to_dict("list") == {"id": ["a"]}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CELL, min_size=1, max_size=4).map(",".join), max_size=6).map("\n".join), st.integers(0, 1 << 30))
def test_the_fast_parser_is_used_only_where_it_reads_the_same(tmp_path_factory, text, place):
    path = tmp_path_factory.getbasetemp() / "hypothesis.csv"
    content = bytearray(HEADER + text.encode())
    content[place % len(content)] = place % 251
    path.write_bytes(content)
    try:
        frame = read(path, Counter())
    except InputError:
        return
    if tables._is_regular(path, "utf-8"):
        (slow,) = tables._repaired_chunks(
            path, tables._header_of(path, "utf-8", Reading(repairs=Counter())), Reading(TEXT, repairs=Counter()), None
        )
        pd.testing.assert_frame_equal(frame, slow)
    assert len(frame) == len(lines_of(path))


# Ids


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([7.0, np.nan, 7.5], ["7", None, "7.5"]),
        ([7, 10**17, 0], ["7", str(10**17), "0"]),
        (["007", None, "7.0"], ["007", None, "7.0"]),
        ([b"ISIC_1", "b", pd.NA], ["ISIC_1", "b", None]),
        (pd.array([7, None], "Int64"), ["7", None]),
        (pd.Categorical(["x", None, "x"]), ["x", None, "x"]),
    ],
)
def test_ids_are_text_whatever_type_a_column_has(values, texts):
    assert as_text(pd.Series(values)).tolist() == texts


def test_a_mismatch_has_both_counts_and_three_ids_of_each_side():
    sentence = id_mismatch("a.csv", ["1", "2", "3", "4", "5"], "b.csv", ["ISIC_1", "ISIC_2", "5"])
    assert sentence == (
        "4 of the 5 ids of a.csv (1, 2, 3) are not in b.csv and 2 of the 3 ids of b.csv (ISIC_1, ISIC_2) are not in a.csv"
    )
    assert "0 of the 2 ids of b (1, 2)" in id_mismatch("a", ["1", "2", "3"], "b", ["1", "2"])
    assert "0 of the 0 ids of b (none)" in id_mismatch("a", ["1"], "b", [])
