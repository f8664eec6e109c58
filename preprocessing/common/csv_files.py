"""CSV files that people write: whatever a spreadsheet or an editor made of them is read right or refused by line."""

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.common.cli import nearest, raise_all

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAVE_AGAIN = "save it as 'CSV UTF-8 (comma delimited)', or in LibreOffice as Text CSV with character set UTF-8"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class CsvLine:
    """One line of a table: its number in the file, and column -> cell without surrounding blanks."""

    number: int
    cells: dict[str, str]


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a comma-separated UTF-8 file, with or without a byte-order mark; skip empty lines.

    Raises:
        ValueError: no such file, another encoding or separator, or open quotes; the message says how to save the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a CSV table")
    with path.open("rb") as raw:
        head = raw.read(4)
    if head.startswith(_UTF16) or b"\0" in head:
        raise ValueError(f"{path}: UTF-16 text (a spreadsheet's 'Unicode text'), expected UTF-8; {_SAVE_AGAIN}")
    if not head:
        raise ValueError(f"{path}: an empty file (0 bytes), expected a CSV table")
    if head in _WORKBOOKS:
        raise ValueError(f"{path}: a workbook of a spreadsheet program, expected a CSV table; {_SAVE_AGAIN}")
    number, first = 1, True
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            for cells in reader:
                if first and any(cells):
                    _check_separator(path, number, cells)
                    first = False
                if any(cell.strip() for cell in cells):
                    yield number, cells
                number = reader.line_num + 1
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(
                f"{path}, line {_undecodable_line(path)}: not UTF-8 (byte 0x{byte:02x}), probably Latin-1 or "
                f"Windows-1252; {_SAVE_AGAIN}"
            ) from None
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {number}: not a UTF-8 CSV file ({error}); close every quotation mark, and write one "
                'inside a quoted cell twice ("")'
            ) from None


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    with path.open("rb") as stream:
        return next(n for n, line in enumerate(stream, 1) if "\ufffd" in line.decode(errors="replace"))


def _check_separator(path: Path, number: int, cells: Sequence[str]) -> None:
    if cells[0].lower().startswith("sep="):
        raise ValueError(f"{path}, line {number}: found {cells[0]!r}; remove this line, and separate cells by commas")
    names = [name for mark, name in _SEPARATORS.items() if mark in cells[0]]
    if len(cells) == 1 and names:
        raise ValueError(
            f"{path}: cells are separated by {names[0]}, expected commas, and decimal points in numbers; {_SAVE_AGAIN}"
        )


def read_csv(path: Path, required: Collection[str] = (), *, optional: Collection[str] | None = None) -> list[CsvLine]:
    """Read a CSV file with the `required` columns, and `optional` ones (None = any); report all faulty lines at once.

    Raises:
        ValueError: as `csv_rows`; or a column that is absent, unknown, unnamed or there twice; or lines with too few or
            too many cells.
    """
    rows = csv_rows(path)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    # spreadsheets write empty columns at the end
    while header and not header[-1]:
        header.pop()
    _check_header(path, header, required, optional)
    lines: list[CsvLine] = []
    problems: list[str] = []
    for number, cells in rows:
        extra = [cell for cell in cells[len(header) :] if cell.strip()]
        if len(cells) < len(header) or extra:
            advice = "; put cells that contain a comma in quotes" if extra else ""
            problems.append(
                f"line {number} ({cells[0].strip()!r}): found {len(cells)} cells, expected {len(header)}, one per "
                f"column{advice}"
            )
        else:
            lines.append(CsvLine(number, {name: cells[i].strip() for i, name in enumerate(header)}))
    raise_all(problems, str(path))
    return lines


def _check_header(
    path: Path, header: Sequence[str], required: Collection[str], optional: Collection[str] | None
) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: found the columns {list(header)}, expected each once; twice: {twice}")
    absent = [name for name in required if name not in header]
    unknown = [] if optional is None else [name for name in header if name not in {*required, *optional}]
    parts = [f"expected also {absent}"] if absent else []
    if unknown:
        hint = "".join(nearest(name, (*(absent or required), *(optional or ()))) for name in unknown)
        allowed = f"required {', '.join(required)}; optional {', '.join(optional or ())}"
        parts.append(f"unknown columns {unknown}{hint}, allowed are: {allowed}")
    if parts:
        raise ValueError(f"{path}: found the columns {list(header)}, {'; '.join(parts)}")
