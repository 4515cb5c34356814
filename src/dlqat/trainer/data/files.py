# SPDX-License-Identifier: Apache-2.0
"""Files of training data by the end of their names: where each row stands, and what stands there.

.jsonl, .jsonl.gz    a row a line
.json                a list of rows, or a row a line
.csv                 a line of column names, then the rows; commas, "quotes"
.parquet             one row after the other (pyarrow, which comes with datasets)
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from dlqat import json_file, plain_file
from dlqat.refusal import Refusal

Row = tuple[str, Any]
"""Where it stands (data.jsonl:17), and what stands there."""
TEXT = ".txt"
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the datasets library writes beside rows."""


def jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines are passed over."""
    with path.open("rb") as file:
        yield from _lines(file, path)


def _gzipped(path: Path) -> Iterator[Row]:
    try:
        with gzip.open(path) as file:
            yield from _lines(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal(f"{path} is not a gzip file, or a damaged one ({error})") from error


def _lines(file: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[Row]:
    # A line has an end: a few kilobytes of gzip can hold gigabytes.
    for number, line in enumerate(iter(lambda: file.readline(plain_file.MOST_TEXT + 1), b""), 1):
        if len(line) > plain_file.MOST_TEXT:
            raise Refusal(f"{path}:{number} is longer than a row may be ({plain_file.MOST_TEXT >> 20} MB)")
        if line.strip():
            yield f"{path}:{number}", json_file.parse(line, f"{path}:{number}")


def _json(path: Path) -> Iterator[Row]:
    text = plain_file.text(path).removeprefix("\ufeff")
    if not text.lstrip().startswith("["):
        yield from jsonl(path)
        return
    for number, row in enumerate(json_file.parse(text, str(path)), 1):
        yield f"{path} (row {number})", row


def _csv(path: Path) -> Iterator[Row]:
    text = plain_file.text(path).removeprefix("\ufeff")
    csv.field_size_limit(plain_file.MOST_TEXT)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():  # what DictReader does with cells too many and too few
                raise Refusal(f"{where}: the row has not as many cells as the first line has names")
            yield where, row
    except csv.Error as error:
        raise Refusal(f"{path}:{reader.line_num + 1} is no CSV ({error})") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs] # it has none
    except ImportError as error:
        raise Refusal(f"{path}: .parquet files need pyarrow: pip install 'dlqat[data]'") from error
    number = 0
    try:
        with cast("Any", parquet).ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} (row {number})", row
    except (OSError, ValueError, KeyError, NotImplementedError) as error:  # Arrow's own are of these
        raise Refusal(
            f"{path} is not a parquet file, or a damaged one ({' '.join(str(error).split())[:200]})"
        ) from error


_KINDS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": jsonl,
    ".jsonl.gz": _gzipped,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
ENDINGS = (TEXT, *_KINDS)
NAMED = f"{', '.join(ENDINGS[:-1])} and {ENDINGS[-1]}"


def kind(path: Path) -> str | None:
    """Which of ENDINGS a file has; None: no data."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file that has them (not TEXT)."""
    if (reason := plain_file.fault(path)) is not None:
        raise Refusal(f"{path} {reason}")
    yield from _KINDS[kind(path) or ""](path)


def below(folder: Path) -> list[Path]:
    """The files of data in a folder and below it, in order."""
    found = sorted(p for p in folder.rglob("*") if kind(p) and p.name not in NOT_DATA and p.is_file())
    if not found:
        raise Refusal(f"{folder} has no file of data ({NAMED})")
    return found
