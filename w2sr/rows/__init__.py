"""Rows of files that others wrote: JSON, JSON lines, CSV, TSV and Parquet, with columns that the user names.

`reading` reads the rows of a file one after the other, `files` and `json_document` know the formats, and `cells` turns
what a cell holds into texts and numbers.
"""

from w2sr.rows.cells import (
    MEDIA,
    Row,
    as_answer,
    as_float,
    as_int,
    as_prose,
    as_text,
    cell,
    check_fields,
    column_names,
    derived_id,
    is_filled,
    nearest,
    parse_spans,
    printable,
    problem_hash,
    refuse_media,
    shown,
)
from w2sr.rows.files import SUFFIXES, Data
from w2sr.rows.reading import BadRows, OnBadRow, Where, data_name, read_rows

__all__ = [
    "MEDIA",
    "SUFFIXES",
    "BadRows",
    "Data",
    "OnBadRow",
    "Row",
    "Where",
    "as_answer",
    "as_float",
    "as_int",
    "as_prose",
    "as_text",
    "cell",
    "check_fields",
    "column_names",
    "data_name",
    "derived_id",
    "is_filled",
    "nearest",
    "parse_spans",
    "printable",
    "problem_hash",
    "read_rows",
    "refuse_media",
    "shown",
]
