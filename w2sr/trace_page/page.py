"""The page: template, style and script of this folder, and the traces as data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from w2sr.trace_page.columns import extra_columns, numeric_columns, page_columns, score_columns
from w2sr.trace_summary import VERDICTS, count_lengths
from w2sr.types import Trace

FOLDER = Path(__file__).resolve().parent

PAGE_SIZE = 100
"""Rows of the list that are in the document at a time."""


def render_page(
    traces: Sequence[Trace], *, title: str, num_all: int, scores: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """One HTML document that shows the traces, without any other file and without the network.

    What a trace says is data: it stands in one JSON block whose `<`, `>` and `&` are escaped, and the script puts it
    into the document as text only. A content security policy lets nothing run but the page's own script, by its hash,
    and lets nothing be fetched.

    Args:
        traces: what to show, at least one.
        title: what they are, such as the path of their store.
        scores: column → trace_id → value: what one can also filter and sort by. NaN counts as no value.
        num_all: of how many traces these are a sample stratified by verdict; equal to their number where they are all.
    """
    lengths = count_lengths(traces)
    extras = extra_columns(traces) | score_columns(traces, scores or {})
    content = {
        "num_traces": len(traces),
        "page_size": PAGE_SIZE,
        "verdicts": VERDICTS,
        "length_unit": lengths.unit,
        "length_bins": lengths.bins,
        "columns": page_columns(traces),
        "extras": extras,
        "scores": numeric_columns(extras),
    }
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        title=title,
        num_traces=len(traces),
        num_all=num_all,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(json_for_script(content)),
    )


def json_for_script(content: Any) -> str:
    r"""JSON that cannot end the script element it stands in: ASCII, without `<`, `>` and `&`.

    >>> json_for_script("</script>\u2028")
    '"\\u003c/script\\u003e\\u2028"'
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, nothing runs but this script, and no text becomes markup (Trusted Types)."""
    return (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
