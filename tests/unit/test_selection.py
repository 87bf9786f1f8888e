"""Selection: which traces each rule keeps, what the table says, and that loops are found and casework is not."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sr import chance
from w2sr.selection import (
    GateRow,
    format_table,
    is_looping,
    repeated_frac,
    select,
    tail_loop_chars,
)
from w2sr.traces import read_traces
from w2sr.types import Trace, VerdictLabel


def make_trace(
    problem: int, sample: int = 0, verdict: VerdictLabel | Literal[""] = "correct", **changes: object
) -> Trace:
    trace = Trace(
        problem_id=f"toy/{problem}",
        source="toy",
        problem=f"problem {problem}",
        reference_answer="7",
        teacher="weak",
        completion=f"work {problem} {sample} gives 7",
        finish_reason="stop",
        sample_index=sample,
        num_tokens=10 * problem + sample,
        answer=None if verdict == "no_answer" else "7",
        verdict=verdict,
    )
    return replace(trace, **changes)  # type: ignore[arg-type]


MIXED = [
    make_trace(1),
    make_trace(2, verdict="incorrect"),
    make_trace(3, verdict="no_answer"),
    make_trace(4, verdict="timeout"),
    make_trace(5, verdict="incorrect"),
]


def kept(traces: list[Trace], **options: object) -> list[str]:
    options = {"keep": "all", **options}
    return [trace.trace_id for trace in select(traces, **options).traces]  # type: ignore[arg-type]


@pytest.mark.parametrize(("keep", "problems"), [("P", "1"), ("N", "25"), ("N_paper", "2345"), ("all", "12345")])
def test_keep(keep: str, problems: str) -> None:
    assert kept(MIXED, keep=keep) == [f"toy/{problem}@weak#0" for problem in problems]


@pytest.mark.parametrize(("finish", "problems"), [("stop", "1"), ("stop_or_unknown", "13"), ("any", "123")])
def test_finish(finish: str, problems: str) -> None:
    traces = [make_trace(n, finish_reason=reason) for n, reason in enumerate(("stop", "length", "unknown"), 1)]
    assert kept(traces, finish=finish) == [f"toy/{problem}@weak#0" for problem in problems]


def test_gates_on_single_traces() -> None:
    assert kept(MIXED, has_answer=True) == [f"toy/{n}@weak#0" for n in (1, 2, 4, 5)]
    assert kept([*MIXED, make_trace(6, verdict="timeout", answer=None)], has_answer=True)[-1] == "toy/5@weak#0"
    assert kept(MIXED, min_tokens=20, max_tokens=40) == [f"toy/{n}@weak#0" for n in (2, 3, 4)]
    loop = make_trace(6, completion="again and " * 90)
    assert kept([*MIXED, loop])[-1] == "toy/5@weak#0"
    assert kept([*MIXED, loop], not_looping=False)[-1] == "toy/6@weak#0"


def test_dedupe_is_within_a_problem_and_ignores_white_space() -> None:
    traces = [
        make_trace(1, 0, completion="x =\n 1"),
        make_trace(1, 1, completion="x = 1 "),
        make_trace(1, 2, completion="x = 2"),
        make_trace(2, 0, completion="x = 1"),
    ]
    assert kept(traces) == ["toy/1@weak#0", "toy/1@weak#2", "toy/2@weak#0"]
    assert len(kept(traces, dedupe=False)) == 4


def test_cap_per_problem() -> None:
    lengths = [31, 12, 45, 12]
    traces = [make_trace(1, index, num_tokens=length) for index, length in enumerate(lengths)] + [make_trace(2)]

    def chosen(choose: str, limit: int, seed: int = 0) -> list[int]:
        ids = kept(traces, max_per_problem=limit, choose=choose, seed=seed)
        assert ids[-1] == "toy/2@weak#0"
        return [int(name[-1]) for name in ids[:-1]]

    assert chosen("first", 2) == [0, 1]
    assert chosen("shortest", 1) == [1]
    assert chosen("shortest", 3) == [0, 1, 3]
    assert chosen("longest", 2) == [0, 2]
    assert {chosen("random", 1, seed)[0] for seed in range(40)} == {0, 1, 2, 3}
    for seed in range(5):
        assert set(chosen("random", 1, seed)) < set(chosen("random", 2, seed)) < set(chosen("random", 3, seed))


def test_equal_counts_are_exact_nested_and_seeded() -> None:
    traces = [make_trace(n) for n in range(60)]
    small, large = (set(kept(traces, num_traces=number, seed=5)) for number in (20, 41))
    assert (len(small), len(large)) == (20, 41)
    assert small < large
    assert small != set(kept(traces, num_traces=20, seed=6))
    # A trace's place depends on its own id: without 10 others, those that stay keep their order.
    fewer = set(kept(traces[10:], num_traces=20, seed=5))
    assert {name for name in small if name not in {t.trace_id for t in traces[:10]}} <= fewer
    with pytest.raises(ValueError, match=r"num_traces=61 \(seed 0\): 60 traces are there(.|\n)*keep=all +60 +0 +60"):
        select(traces, keep="all", num_traces=61)


def test_token_budget_is_kept_nested_and_without_favour_for_short_traces() -> None:
    traces = [make_trace(n, num_tokens=n) for n in range(1, 101)]
    tokens = {trace.trace_id: trace.num_tokens for trace in traces}
    small, large = (kept(traces, num_tokens=budget, seed=3) for budget in (1000, 3000))
    assert 1000 - 100 < sum(tokens[name] for name in small) <= 1000
    assert 3000 - 100 < sum(tokens[name] for name in large) <= 3000
    assert set(small) < set(large)
    assert 35 < sum(tokens[name] for name in large) / len(large) < 66  # the mean of all is 50.5
    # The budget ends at the first trace that does not fit, in an order of its own.
    order = sorted(tokens, key=lambda name: chance.integer("num_tokens", 3, 0, name))
    used = list(accumulate(tokens[name] for name in order))
    assert set(small) == {name for name, total in zip(order, used, strict=True) if total <= 1000}
    assert set(small) != set(kept(traces, num_traces=len(small), seed=3))
    assert len(kept(traces, num_tokens=5050)) == 100
    with pytest.raises(ValueError, match="5,050 tokens are there"):
        select(traces, keep="all", num_tokens=5051)


def test_a_token_budget_is_never_exceeded_by_one() -> None:
    """12 traces of 1 to 12 tokens, 78 in all: some budgets are met exactly."""
    traces = [make_trace(n, num_tokens=n) for n in range(1, 13)]
    tokens = {trace.trace_id: trace.num_tokens for trace in traces}
    left = [budget - sum(tokens[name] for name in kept(traces, num_tokens=budget)) for budget in range(12, 79)]
    assert min(left) == 0 and max(left) < 12


def test_the_selection_does_not_depend_on_the_order_of_the_traces() -> None:
    traces = [make_trace(p, s, completion=f"{s % 2}") for p in range(8) for s in range(4)]
    options = {"max_per_problem": 1, "num_traces": 5, "seed": 2}
    expected = kept(traces, **options)
    for seed in range(5):
        shuffled = random.Random(seed).sample(traces, len(traces))
        assert kept(shuffled, **options) == expected


def test_the_table_accounts_for_every_trace() -> None:
    traces = [*MIXED, make_trace(1, 1, completion="7"), make_trace(1, 2, completion="7"), make_trace(1, 3)]
    traces.append(make_trace(6, finish_reason="length"))
    selection = select(traces, keep="P", max_per_problem=2, num_traces=1)
    assert selection.table == [
        GateRow("keep=P", 9, 4, 5),
        GateRow("finish=stop", 5, 1, 4),
        GateRow("not_looping", 4, 0, 4),
        GateRow("dedupe", 4, 1, 3),
        GateRow("max_per_problem=2 (first)", 3, 1, 2),
        GateRow("num_traces=1 (seed 0)", 2, 1, 1),
    ]
    assert selection.num_problems == 1
    content = json.loads(selection.to_json())
    assert content["num_traces"] == 1
    assert content["gates"][0] == {"gate": "keep=P", "num_in": 9, "num_removed": 4, "num_out": 5}


def test_the_table_is_aligned() -> None:
    table = [GateRow("keep=P", 9233, 1782, 7451), GateRow("dedupe", 7451, 1, 7450)]
    assert format_table(table).splitlines() == [
        "gate       in  removed    out",
        "keep=P  9,233    1,782  7,451",
        "dedupe  7,451        1  7,450",
    ]


def test_words_of_a_configuration_are_compared_by_value() -> None:
    """A word that is read from a file is equal to the one in the source, and not the same object."""

    def as_read(word: str) -> str:
        return str(json.loads(json.dumps(word)))

    assert as_read("random") is not as_read("random"), "guard"
    traces = [make_trace(problem, sample) for problem in (7, 8) for sample in range(3)] + MIXED
    for key, words in {
        "keep": ("P", "N", "N_paper", "all"),
        "choose": ("first", "random", "shortest", "longest"),
    }.items():
        for word in words:
            assert kept(traces, max_per_problem=1, **{key: word}) == kept(
                traces, max_per_problem=1, **{key: as_read(word)}
            ), word
    for word in ("stop", "any"):
        assert kept(traces, finish=word) == kept(traces, finish=as_read(word))


def test_what_cannot_be_selected_is_refused() -> None:
    unverified = make_trace(7, verdict="")
    for traces, options, message in (
        ([*MIXED, unverified], {}, "1 of 6 traces have no verdict, the first 'toy/7@weak#0'"),
        ([*MIXED, make_trace(1, source="other")], {}, r"'toy/1@weak#0' was given twice \(sources"),
        ([make_trace(1, num_tokens=-1)], {"max_tokens": 9}, "'toy/1@weak#0' has no token count"),
        ([make_trace(1, num_tokens=-1)] * 1, {"max_per_problem": 1, "choose": "longest"}, "no token count"),
        (MIXED, {"max_per_problem": 0}, "max_per_problem=0 must be at least 1"),
        (MIXED, {"keep": "p"}, "keep='p' must be one of P, N, N_paper, all"),
        (MIXED, {"finish": "stopped"}, "finish='stopped' must be one of"),
        (MIXED, {"choose": "best"}, "choose='best' must be one of"),
        (MIXED, {"keep": "P", "min_tokens": 99}, "keeps no trace(.|\n)*keep=P +5 +4 +1\n(.|\n)*min_tokens=99 +1 +1 +0"),
        ([], {}, "keeps no trace"),
    ):
        with pytest.raises(ValueError, match=message):
            kept(traces, **options)


# --- loops -------------------------------------------------------------------------------------------------------


def naive_tail_loop_chars(text: str) -> int:
    """Every end of the text against every period, letter by letter."""
    text = text.rstrip()
    longest = 0
    for length in range(1, len(text) + 1):
        end = text[-length:]
        for period in range(1, length // 3 + 1):
            if all(end[at] == end[at + period] for at in range(length - period)):
                longest = length
                break
    return longest


@settings(max_examples=150, deadline=None)
@given(st.text("ab ", max_size=12), st.text("ab", min_size=1, max_size=5), st.integers(0, 6), st.integers(0, 4))
def test_exact_loops_equal_the_naive_search(head: str, block: str, repeats: int, rest: int) -> None:
    text = head + block * repeats + block[:rest]
    assert tail_loop_chars(text) == naive_tail_loop_chars(text)


def test_only_the_last_8000_characters_are_searched() -> None:
    assert tail_loop_chars("start " + "ab" * 6000 + "\n") == 8000
    distinct = " ".join(str(number) for number in range(3000))
    assert tail_loop_chars(distinct) == 3  # the end of 2999
    assert not is_looping(distinct)


def test_a_loop_counts_from_200_characters_on() -> None:
    """`ab` 100 times is 200 characters, all of them one loop; without one letter it is 199."""
    assert tail_loop_chars("ab" * 100) == 200 and is_looping("ab" * 100)
    assert tail_loop_chars("b" + "ab" * 99) == 199 and not is_looping("b" + "ab" * 99)


def test_repeated_frac_is_the_share_of_8_grams_seen_before() -> None:
    words = [f"w{number}" for number in range(150)]
    assert repeated_frac(" ".join(words * 2)) == pytest.approx(143 / 293)  # of 293 8-grams 150 are new
    assert repeated_frac(" ".join(f"w{number}" for number in range(300))) == 0
    assert repeated_frac("a " * 255) == 0  # too short to judge
    assert repeated_frac("a " * 256) == pytest.approx(248 / 249)
    assert repeated_frac("b " * 500 + " ".join(f"w{number}" for number in range(2048))) == 0  # the end alone counts


def test_a_loop_with_small_changes_is_found_and_casework_is_not() -> None:
    # Of the 45 words and signs of a round, the 8 n-grams that contain its number are new: a share of 37/45 is not.
    block = "The sum is {n}, so this is wrong, and we must correct the sum of all the angles in the polygon again: "
    block += (
        "the sum of the angles of a polygon with twelve sides is 1800 degrees, and the angles given are subtracted. "
    )
    text = "".join(block.format(n=n) for n in range(200))
    assert is_looping(text)
    assert tail_loop_chars(text) < 200
    assert 0.75 < repeated_frac(text) < 0.85
    primes = [n for n in range(2, 400) if all(n % d for d in range(2, n))]
    assert not is_looping(" ".join(f"1321 is not divisible by {p}, so we try the next prime number." for p in primes))
    assert not is_looping("= " + " + ".join(["12"] * 40))
    assert is_looping("0.1" + "3" * 200)
    assert not is_looping("0.1" + "3" * 199)


def test_real_loops(shared_data: Path) -> None:
    columns = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}
    columns |= {"answer": "prediction"}
    counts = {}
    for name in ("openai_gsm8k_example_model_solutions", "rgym_math_mistral-small-24b", "qwen25math_example_math100"):
        traces, _ = read_traces(shared_data / "traces" / f"{name}.jsonl.gz", columns)
        loops = [trace for trace in traces if is_looping(trace.completion)]
        # The makers' own judgement: no right answer among them.
        assert not [t for t in loops if t.answer is not None and re.sub(r"\W", "", t.answer) == t.reference_answer]
        counts[name] = len(loops), len(traces)
    assert list(counts.values()) == [(5, 5276), (4, 5200), (0, 800)]
    gsm8k = shared_data / "traces" / "zeroeval_gsm8k_weak_to_strong.jsonl.gz"
    for stop_text, expected in (((), 567), (("</s>",), 7)):
        traces, _ = read_traces(gsm8k, columns, stop_text=stop_text)
        assert sum(is_looping(trace.completion) for trace in traces) == expected
