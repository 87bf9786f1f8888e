"""Unicode forms and markup round the whole answer, on texts that the eye can judge, and as properties."""

from __future__ import annotations

import time

import pytest
from answer_markup import MARKUPS
from hypothesis import given
from hypothesis import strategies as st

from w2sr.verify.markup import MAX_LEVELS, plain, plain_with_places, unwrap

ANSWERS = [
    "5",
    "-1,234.5",
    "Yes",
    "(B)",
    r"\frac{1}{2}",
    "New York",
    "_ _ Q _",
    "C++",
    '[["a"], ["b"]]',
    "] ] >",
    "x^{2}",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("markup", MARKUPS)
def test_markup_round_the_whole_answer_is_removed(markup: str, answer: str) -> None:
    if '"' in markup and '"' in answer:
        return  # the quotation marks would close inside
    assert unwrap(markup.format(answer)) == answer


@pytest.mark.parametrize("answer", ["__Yes__", "_Yes_", "__5__", "_5_", "_The Hague_"])
def test_underscores_are_emphasis_round_words_and_numbers(answer: str) -> None:
    assert unwrap(answer) == answer.strip("_")


@pytest.mark.parametrize(
    "text",
    [
        "C*",
        "*",
        "**",
        "_",
        "_ _ Q _",
        "_Q_",
        "__init__",
        "$5",
        "$5 or $6$",
        "x**2 + y**2",
        "f(**a, **b)",
        "a/**/b/**/c",
        '"a", "b"',
        "'don't'",
        r"\text{a} or \text{b}",
        r"\mathbb{R}",
        r"\boxed{}",
        "**5",
        "5**",
        "[5]",
        "{5}",
        "(5)",
        "5!",
        "1, 2, ...",
        ".",
        '""',
        "* 5 *",
        r"\{1\}",
    ],
)
def test_what_is_part_of_the_answer_stays(text: str) -> None:
    assert unwrap(text) == text


def test_bold_inside_the_text_is_removed() -> None:
    assert unwrap("**5** apples.") == "5 apples" and unwrap("**5** or **6**") == "5 or 6" == unwrap("**5 or 6**")


@given(st.text(alphabet='a5.* _`$"\\(){}[]。', max_size=12))
def test_unwrapping_never_empties_and_keeps_a_piece(text: str) -> None:
    inner = unwrap(text)
    assert (inner in text or "**" in text) and bool(inner) == bool(text.strip())


@pytest.mark.parametrize(
    "text", [r"**$\boxed{\text{Yes}}$**.", "“*Yes.*”", r"\boxed{\boxed{“Yes”}}", "`<b>**Yes**</b>`"]
)
def test_different_markups_may_be_nested(text: str) -> None:
    assert unwrap(text) == "Yes"


def test_unicode_forms() -> None:
    assert plain("（Ｂ）") == "(B)" and plain("６ ٣ ५ 𝟓") == "6 3 5 5" and plain("1\u200b2\ufeff") == "12"
    assert plain("－5 −5 ‐5") == "-5 -5 -5" and plain("1⁄2") == "1/2" and plain("５。") == "5。"
    for kept in ("x²", "½", "3–5", "é", "5 — 6", "π", "10⁻³", "一"):
        assert plain(kept) == kept


@given(st.text(alphabet="a5 \u200bＢ６٣−é😀²", max_size=20))
def test_places_say_where_each_character_stands(text: str) -> None:
    folded, places = plain_with_places(text)
    assert folded == plain(text) == plain(folded)
    if places is None:
        assert len(folded) == len(text)
    else:
        assert [plain(text[place]) for place in places] == list(folded)


@pytest.mark.parametrize("unit", ["*", "**5**", r"\text{", "{", "`", '"', "$", "<b>", "。", "\u200b", "６", "_", "."])
def test_hostile_texts_cost_linear_time(unit: str) -> None:
    began = time.perf_counter()
    for length in (MAX_LEVELS * 600, 400_000):
        unwrap(plain(unit * (length // len(unit))))
    assert time.perf_counter() - began < 5.0  # measured: under 0.5 s each
