"""One reader for every CSV file: encodings, row lengths, quotes and line numbers by the same rules everywhere.

A file in UTF-8 whose every line has as many cells as its header goes to pandas' fast parser. Any other is read line by line:
the encoding follows the byte order mark; blank lines and lines of commas only are no rows; empty cells beyond the header's
are no cells. What is still wrong is refused, in a sentence with the line that an editor shows. Where the caller counts
repairs it is repaired: a cell that cannot be decoded is empty, a long row is cut, a short one filled with empty cells.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from inference.files import refuse_dangling
from utils import InputError

#: Bytes that are scanned at a time.
SCAN_BLOCK = 1 << 24
#: Lines that a quoted cell may span: a quote that is never closed must not swallow the file.
MOST_QUOTED_LINES = 100
#: What stands for a byte that cannot be decoded: a lone surrogate, which no valid text holds.
UNDECODED = "\udcff"
_COMMA, _NEWLINE, _RETURN, _QUOTE = b',\n\r"'
_SEPARATORS = np.isin(np.arange(256), (_COMMA, _NEWLINE))

#: What pandas takes for a missing value in a CSV file.
MISSING_WORDS = (
    *("", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "None", "NULL", "null", "<NA>"),
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
)


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    """The error handler of ``codecs``: a byte that cannot be decoded becomes ``UNDECODED``."""
    if isinstance(error, UnicodeDecodeError):
        return UNDECODED, error.end
    raise error


codecs.register_error("undecoded", _undecoded)


@dataclass(frozen=True)
class Reading:
    """How a CSV file is read.

    Args:
        dtype: pandas' ``dtype``: the columns that stay text.
        header: whether the first line names the columns.
        keep_default_na: whether words such as NA are missing values.
        columns: those to read; None for all.
        repairs: counts what was repaired; None refuses it.
    """

    dtype: Any = field(default_factory=dict)
    header: bool = True
    keep_default_na: bool = True
    columns: frozenset[str] | None = None
    repairs: Counter[str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of ``pandas.read_csv``."""
        wanted = self.columns
        chosen = {"usecols": lambda name: name in wanted} if wanted is not None else {}
        header = {"header": 0 if self.header else None, "keep_default_na": self.keep_default_na}
        return {"dtype": self.dtype, "low_memory": False, "index_col": False} | header | chosen


class Record(NamedTuple):
    """A row as it stands in the file: its first line, its cells, and whether a quote in it is never closed."""

    line: int
    cells: list[str]
    open_quote: bool = False
    cut: bool = False


def read_csv_file(path: Path, reading: Reading) -> pd.DataFrame:
    """The whole file.

    Raises:
        InputError: the file is missing or empty; without ``reading.repairs``, a row, cell or column is wrong.
    """
    return next(csv_chunks(path, reading, None))


def csv_chunks(path: Path, reading: Reading, rows: int | None) -> Iterator[pd.DataFrame]:
    """The file, at most ``rows`` rows at a time; errors as in ``read_csv_file``."""
    try:
        encoding = encoding_of(path)
        header = _header_of(path, encoding, reading)
        if _is_regular(path, encoding, len(header)):
            frames = pd.read_csv(path, encoding=encoding, chunksize=rows, **reading.options)
            yield from [frames] if rows is None else frames
        else:
            yield from _repaired_chunks(path, header, reading, rows)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        refuse_dangling(path)
        raise InputError(f"{path.name} is not in {path.parent}; give the folder that holds it.") from error
    except pd.errors.ParserError as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip().splitlines()[0]}); fetch it again.") from error


def encoding_of(path: Path) -> str:
    """The encoding by the byte order mark; UTF-8 without one."""
    with path.open("rb") as file:
        start = file.read(3)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if start == codecs.BOM_UTF8 else "utf-8"


def lines_of(path: Path, header: bool = True) -> np.ndarray:
    """The line of every row as an editor counts them, int64 of shape (rows,)."""
    counted: Counter[str] = Counter()
    rows = (row.line for row in _rows(path, encoding_of(path), Reading(header=header, repairs=counted)))
    return np.fromiter(rows, "int64")


def _header_of(path: Path, encoding: str, reading: Reading) -> list[str]:
    """The names of the columns; their numbers where the file has no header.

    Raises:
        InputError: the file is empty; without repairs, a name occurs twice or cannot be decoded.
    """
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        first = next(_records(file, None), None)
    names = _without_empty_end(first.cells) if first else []
    if not first or not names:
        raise InputError(f"{path} cannot be read as CSV ({'its first line' if first else 'it'} is empty); fetch it again.")
    if not reading.header:
        return [str(number) for number in range(len(names))]
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if reading.repairs is not None:
        _count(reading.repairs, "duplicated_columns", len(twice))
    elif twice or first.open_quote or any(UNDECODED in name for name in names):
        wrong = f"has column {twice[0]!r} twice; keep one" if twice else "cannot be read as CSV; fetch it again"
        raise InputError(f"{path} line {first.line} {wrong}.")
    return [name.replace(UNDECODED, "\N{REPLACEMENT CHARACTER}") for name in names]


def _is_regular(path: Path, encoding: str, columns: int | None = None) -> bool:
    """Whether pandas' parser reads the file by the rules of this module; with ``columns``, if given, in every line."""
    if encoding == "utf-16":
        return False
    width, rest = columns, b""
    with path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
        while block := file.read(SCAN_BLOCK):
            block = rest + block
            end = block.rfind(b"\n") + 1
            for _ in range(MOST_QUOTED_LINES):
                if block.count(b'"', 0, end) % 2 == 0:
                    break
                end = block.rfind(b"\n", 0, end - 1) + 1  # the last newline is in a cell
            if end == 0 and len(block) > 2 * SCAN_BLOCK:
                return False
            width, rest = _width_of(block[:end], width), block[end:]
            if width == 0:
                return False
    return _width_of(rest + b"\n" if rest else b"", width) != 0


def _width_of(block: bytes, width: int | None) -> int | None:
    """How many cells each line of ``block`` has; ``width`` where there is no line, 0 where they differ from it.

    Args:
        block: whole lines.
        width: of the lines before; None if there are none.
    """
    if b"\0" in block or block.count(b"\r") != block.count(b"\r\n"):
        return 0
    try:
        block.isascii() or block.decode("utf-8")
    except UnicodeDecodeError:
        return 0
    content = np.frombuffer(block, np.uint8)
    places = np.flatnonzero(_SEPARATORS[content])
    quotes = np.flatnonzero(content == _QUOTE) if b'"' in block else places[:0]
    if len(quotes):
        if len(quotes) % 2:
            return 0
        opening, closing = quotes[::2], quotes[1::2]
        plain = np.isin(content[opening - 1], (_COMMA, _NEWLINE, _QUOTE))
        plain &= np.isin(content[closing + 1], (_COMMA, _NEWLINE, _RETURN, _QUOTE))
        if not plain.all():
            return 0
        size = len(places) + 1
        edges = np.bincount(places.searchsorted(opening), minlength=size)
        edges -= np.bincount(places.searchsorted(closing), minlength=size)
        places = places[np.cumsum(edges)[:-1] == 0]
    at = np.flatnonzero(content[places] == _NEWLINE)
    cells, ends = np.diff(at, prepend=-1), places[at]
    length = np.diff(ends, prepend=-1) - 1 - (content[ends - 1] == _RETURN)
    cells, length = cells[length > 0], length[length > 0]
    if len(cells) == 0:
        return width
    width = int(cells[0]) if width is None else width
    # A line of commas only is shorter than it has cells.
    return width if (cells == width).all() and (length >= width).all() else 0


def _repaired_chunks(path: Path, header: list[str], reading: Reading, rows: int | None) -> Iterator[pd.DataFrame]:
    """The file by way of its rows, written anew as a regular CSV file: types are inferred as in any other."""
    records, first = _rows(path, encoding_of(path), reading), True
    while True:
        text = io.StringIO()
        writer = csv.writer(text)  # its default line end, "\r\n", makes it quote a cell with either
        if reading.header:
            writer.writerow(header)
        count = 0
        for record in records:
            writer.writerow(record.cells)
            count += 1
            if count == rows:
                break
        if count or first:
            text.seek(0)
            yield pd.read_csv(text, **reading.options) if count or reading.header else pd.DataFrame(columns=header)
        first = False
        if count != rows or rows is None:
            return


def _rows(path: Path, encoding: str, reading: Reading) -> Iterator[Record]:
    """The data rows, each as long as the header; raises InputError for a wrong one, or repairs and counts it."""
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        first = next(_records(file, None), None)
    if first is None:
        return
    names = _without_empty_end(first.cells)
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        records = _records(file, len(names))
        if reading.header:
            next(records)
        for record in records:
            if any(record.cells):
                yield _fitted(path, names, record, reading.repairs)


def _fitted(path: Path, names: list[str], record: Record, repairs: Counter[str] | None) -> Record:
    """A row as long as ``names``, its cells decoded."""
    cells, width = record.cells, len(names)
    if not any(cell.strip() for cell in cells[width:]):
        cells = cells[:width]
    wrong = [number for number, cell in enumerate(cells) if UNDECODED in cell]
    if repairs is None:
        where = f"{path} line {record.line}"
        if record.open_quote:
            raise InputError(f'{where}: a quote (") is never closed; close or remove it, or fetch the file again.')
        if record.cut and len(cells) < width:
            raise InputError(f"{where}: the file ends in the middle of this row; fetch it again.")
        if len(cells) != width:
            raise InputError(f"{where} has {len(cells)} cells, not {width}; correct the line, or fetch it again.")
        if wrong:
            name, byte = names[wrong[0]], cells[wrong[0]].index(UNDECODED) + 1
            raise InputError(
                f"{where}, column {name!r}: character {byte} is not UTF-8; correct it, or save the file as UTF-8."
            )
        return record._replace(cells=cells)
    _count(repairs, "rows_with_open_quote", int(record.open_quote))
    _count(repairs, "rows_too_short", int(len(cells) < width))
    _count(repairs, "rows_too_long", int(len(cells) > width))
    _count(repairs, "cells_not_decoded", len(wrong))
    if record.cut and 1 < len(cells) < width:
        cells = cells[:-1]  # it may be cut, too
    cells = ["" if UNDECODED in cell else cell for cell in cells[:width]]
    return record._replace(cells=cells + [""] * (width - len(cells)))


def _records(file: io.TextIOBase, width: int | None) -> Iterator[Record]:
    """The rows of a file that is opened with ``newline=""``, blank lines left out.

    Args:
        file: its lines.
        width: cells of a row; a quoted cell that spans lines is believed only where it makes a row of so many.
    """
    given_back: deque[tuple[int, str]] = deque()
    lines = enumerate(file, 1)

    def following() -> tuple[int, str] | None:
        return given_back.popleft() if given_back else next(lines, None)

    while (found := following()) is not None:
        number, text = found
        text, cut = text.replace("\0", UNDECODED), not text.endswith(("\n", "\r"))
        if not text.strip():
            continue
        if '"' not in text:
            yield Record(number, text.rstrip("\r\n").split(","), cut=cut)
            continue
        more: list[tuple[int, str]] = []
        cells = _cells_of(text, strict=False)
        while cells == [] and len(more) < MOST_QUOTED_LINES and (found := following()) is not None:
            more.append(found)
            if '"' in found[1]:
                cells = _cells_of(text + "".join(line for _, line in more), strict=True)
        if cells and (not more or width is None or len(_without_empty_end(cells)) <= width <= len(cells)):
            yield Record(number, cells, cut=cut if not more else not more[-1][1].endswith(("\n", "\r")))
            continue
        given_back.extendleft(reversed(more))
        cells = [cell.strip('"') for cell in text.rstrip("\r\n").split(",")]
        if width is not None and len(cells) != width:
            with contextlib.suppress(csv.Error):  # a cell of more than 131,072 characters
                cells = next(csv.reader([text.rstrip("\r\n")]))
        yield Record(number, cells, open_quote=True, cut=cut)


def _cells_of(text: str, *, strict: bool) -> list[str] | None:
    """The cells of a row; none where a quote is not closed yet, None where more lines cannot make it a row.

    Args:
        text: its lines.
        strict: refuse text between a closing quote and the next comma.
    """
    end = "\x01"
    try:
        *cells, last = next(csv.reader([text.rstrip("\r\n") + "," + end], strict=strict))
    except csv.Error as error:
        return [] if "unexpected end" in str(error) else None
    return cells if last == end else []


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells up to the last that is not blank."""
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _count(repairs: Counter[str], name: str, count: int) -> None:
    """Adds to a count; one that is zero stays absent."""
    if count:
        repairs[name] += count


def as_text(column: pd.Series) -> pd.Series:
    """The values as str, missing ones as None: 7.0 of a column of floats is "7", and "007" of one of text stays "007"."""
    texts = column.map(_text_of, na_action="ignore").astype(object)
    return texts.where(column.notna() & ~texts.isin(MISSING_WORDS), None)


def _text_of(value: Any) -> str:
    """One id or word as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def id_mismatch(left_name: str, left: Iterable[str], right_name: str, right: Iterable[str]) -> str:
    """How the ids of two tables differ: both counts, and three ids of each side; the first half of an error sentence.

    The ids shown are those that the other side lacks, where there are any: most often the two differ in their form.
    """
    sides = {left_name: list(dict.fromkeys(left)), right_name: list(dict.fromkeys(right))}
    parts = []
    for (name, ids), (other, others) in zip(sides.items(), reversed(sides.items()), strict=True):
        there = set(others)
        lacking = [isic_id for isic_id in ids if isic_id not in there]
        shown = ", ".join(map(str, (lacking or ids)[:3])) or "none"
        parts.append(f"{len(lacking):,} of the {len(ids):,} ids of {name} ({shown}) are not in {other}")
    return " and ".join(parts)
