"""What the page embeds: the place of the answer, columns that lose nothing, and data that cannot leave its element."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from w2sr.trace_page import render_page
from w2sr.trace_page.columns import SHOWN_FIELDS, extra_columns, numeric_columns, page_columns
from w2sr.trace_page.highlight import highlight_answer
from w2sr.trace_page.page import json_for_script
from w2sr.types import Trace

TRACE = Trace("a/1", "a", "1 + 1?", "2", "weak", r"\boxed{2}", answer="2", answer_rule="boxed", verdict="correct")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        # the place is between « and », which the completion does not have
        (r"5, \boxed{4}, no: \boxed{«5»}. Check: 5 = 5.", "boxed"),
        (r"\boxed{55}, no: \boxed{«5»} of 55", "boxed"),
        (r"so \boxed{«\frac{1}{2}»}, and \frac{1}{2} is half", "boxed"),
        (r"\boxed{«\infty»} \infty", "boxed"),
        ("2 and 2 make 4; 4 of 14 is «4».", "last_number"),
        ("A: yes\nA: «yes»\nyes, yes", "after:A:"),
        ("#### 7\nthus 7 \n#### «7»\n7", "hash"),
        ("<answer>7</answer> 7 <answer> «7» </answer> 7", "answer_tag"),
        ('{"reasoning": "7 or 8", "answer": "«7»", "sure": 7}', "json:answer"),
        ('{"answer": "«answer»"}', "json:answer"),
        ("<think>7</think>\nso 7, \\boxed{«7»}", "boxed"),
        ("7 " * 3_000 + r"\boxed{«7»}" + " 7" * 3_000, "boxed"),
    ],
)
def test_the_deciding_occurrence_is_marked(text: str, rule: str) -> None:
    begin, end = text.index("«"), text.index("»") - 1
    completion = text.replace("«", "").replace("»", "")
    found = highlight_answer(completion, rule)
    assert (found.span, found.answer, found.note) == ((begin, end), completion[begin:end], "")


def test_what_is_not_marked_says_why() -> None:
    assert highlight_answer("no box", "boxed") == (None, None, "The rule boxed finds no answer now.")
    escaped = highlight_answer(r'{"answer": "1\u002c5"}', "json:answer")
    assert escaped.answer == "1,5" and escaped.span is None and "does not stand in the completion" in escaped.note
    assert "No extraction rule is recorded" in highlight_answer("2", "").note
    assert "Unknown extraction rule '<b>'" in highlight_answer("2", "<b>").note


def decoded(column: dict[str, Any]) -> list[Any]:
    return [column["of"][at] for at in column["at"]] if "of" in column else column["values"]


def test_columns_give_back_every_field() -> None:
    traces = [
        replace(
            TRACE, problem_id=f"a/{at}", seed=2**60 if at % 2 else 3, seconds=at / 7, answer=None if at < 3 else "2"
        )
        for at in range(9)
    ]
    columns = page_columns(traces)
    assert "of" in columns["teacher"] and "values" in columns["problem_id"]
    for name in SHOWN_FIELDS:
        expected = [getattr(trace, name) for trace in traces]
        if name == "seed":
            expected = [3 if seed == 3 else str(2**60) for seed in expected]  # a browser would round it
        assert decoded(columns[name]) == expected, name
    assert decoded(columns["trace_id"]) == [trace.trace_id for trace in traces]
    assert decoded(columns["length"]) == [9] * 9
    assert set(SHOWN_FIELDS) <= set(Trace.__dataclass_fields__)


def test_marks_are_counted_as_browsers_count() -> None:
    columns = page_columns([replace(TRACE, completion="𝒙 😀 " + r"\boxed{2}", answer="3")])
    # two characters outside of the basic plane take two units each: 4 + 7 + 2
    assert decoded(columns["mark"]) == [(13, 14)]
    assert decoded(columns["mark_answer"]) == ["2"]  # the stored answer is another
    assert decoded(page_columns([TRACE])["mark_answer"]) == [None]


@dataclass(frozen=True)
class Richer(Trace):
    """A trace of a later version."""

    corruption: str = ""
    no_loss_spans: tuple[tuple[int, int], ...] = ()
    scores: Any = field(default=None, hash=False)
    difficulty: float = float("nan")
    unused: str = ""


def test_fields_of_later_versions_are_shown_under_their_names() -> None:
    base = {name: getattr(TRACE, name) for name in SHOWN_FIELDS}
    traces = [
        Richer(**base, corruption="sign", no_loss_spans=((3, 5),), scores={"loss": 0.5, "novelty": 2}, difficulty=0.25),
        Richer(**base, scores='{"loss": 0.75}'),
        Richer(**base, scores='{"a": ' * 3_000),
    ]
    extras = extra_columns(traces)
    assert {name: decoded(column) for name, column in extras.items()} == {
        "corruption": ["sign", "", ""],
        "no_loss_spans": ["[[3, 5]]", "[]", "[]"],
        "scores.loss": [0.5, 0.75, None],
        "scores.novelty": [2, None, None],
        "scores": [None, None, '{"a": ' * 3_000],
        "difficulty": [0.25, None, None],
    }
    assert numeric_columns(extras) == ["scores.loss", "scores.novelty", "difficulty"]
    assert extra_columns([TRACE]) == {}


def test_equal_values_of_different_kinds_stay_apart() -> None:
    base = {name: getattr(TRACE, name) for name in SHOWN_FIELDS}
    values: list[Any] = [True, 1, True, 1, "1", True, 1]
    column = extra_columns([Richer(**base, corruption=value) for value in values])["corruption"]
    assert "of" in column and list(map(repr, decoded(column))) == list(map(repr, values))
    assert numeric_columns({"mixed": column}) == []


class Elements(HTMLParser):
    """The elements of a page with the text directly in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


HOSTILE = "</script><script>hacked = 1</script><!-- <script> ]]> {{7*7}} {% x %} \u2028 \u202e \x00 \ud800 & &lt; \" '"


def test_hostile_text_stays_in_the_data() -> None:
    text_fields = {name: HOSTILE for name, value in TRACE.__dataclass_fields__.items() if "int" not in str(value.type)}
    hostile = replace(TRACE, **{**text_fields, "verdict": "incorrect", "finish_reason": "stop", "seconds": 1.0})
    page = Elements(render_page([hostile], title=HOSTILE.replace("\ud800", ""), num_all=1))
    plain = Elements(render_page([TRACE], title="plain", num_all=1))
    assert [tag for tag, _ in page.opened] == [tag for tag, _ in plain.opened]
    (data,) = [
        text
        for (tag, attrs), text in zip(page.opened, page.texts, strict=True)
        if attrs.get("type") == "application/json"
    ]
    assert not re.search(r"[<>&\u0080-\uffff]", data)
    content = json.loads(data)
    assert decoded(content["columns"]["completion"]) == [HOSTILE]
    assert decoded(content["columns"]["teacher"]) == [HOSTILE]


def test_the_policy_names_the_only_script_and_the_only_style() -> None:
    page = Elements(render_page([TRACE], title="t", num_all=1))
    (policy,) = [attrs["content"] for _, attrs in page.opened if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-[\w+/=]{44}'; style-src 'sha256-[\w+/=]{44}'; base-uri 'none'; "
        r"form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        policy or "",
    )
    assert not any(name.startswith("on") or name in ("src", "style", "href") for _, a in page.opened for name in a)


def test_a_sample_says_that_it_is_one() -> None:
    assert "<strong>A sample:</strong> 1 of 4,321 traces" in render_page([TRACE], title="t", num_all=4_321)
    assert "sample" not in render_page([TRACE], title="t", num_all=1).split("<main>")[0].split("<body>")[1]


def test_numbers_that_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        json_for_script(float("nan"))
