"""Extraction rules on small completions whose answers the eye can see."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from answer_markup import MARKUPS
from hypothesis import given
from hypothesis import strategies as st
from linear_time import assert_linear

from w2sr.verify import extract, parse_rules
from w2sr.verify.markup import plain


def answer_by(rule: str, completion: str) -> str | None:
    return extract(completion, parse_rules([rule])).answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{41}", "41"),
        (r"first \boxed{41}, then \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 7$ is it", "7"),
        (r"\boxed\frac{3}{4}$", r"\frac{3}{4}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{7}} and {more", "7"),  # stray braces outside
        (r"\boxed{7 + \fbox{8}}", r"7 + \fbox{8}"),  # the outermost box, not the last command
        (r"\boxed{7}, as \boxed{} asked", "7"),  # an echo of the instruction is empty
        (r"\boxed{7. }", "7"),
        (r"$\boxed{5}$ and $\boxed{7}$.", "5, 7"),
        (r"\boxed{(1, 2)}, \boxed{(2, 1)}, \text{ and } \boxed{3}", "(1, 2), (2, 1), 3"),
        (r"$$\boxed{k = 45} \quad \text{and} \quad \boxed{n = 2}$$", "k = 45, n = 2"),
        (r"\boxed{x + 11} or \boxed{11 + x}", "11 + x"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"x = \boxed{3} and y = \boxed{4}", "4"),
        ("\\boxed{3}\n\n\\boxed{4}", "4"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "(B)"),
        (r"\boxed{\mathbf{\frac{2}{3}}}", r"\frac{2}{3}"),
        (r"\boxed{\text{a} + \text{b}}", r"\text{a} + \text{b}"),
        (r"I write \boxed{ and then \boxed{7}", "7"),  # the unclosed one came first
        (r"\boxed{7} so it is \boxed{\frac{7", None),  # cut inside its answer
        (r"\boxedness{7}", None),
        ("the answer is 7", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
    ],
)
def test_boxed(completion: str, answer: str | None) -> None:
    assert answer_by("boxed", completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("2+2\n#### 4", "4"),
        ("#### 3\nno\n####5 \n", "5"),
        ("#### 3\n####\n", "3"),
        ("#### 1,234.5", "1,234.5"),
        ("#### **18**", "18"),
        ("**#### 18**", "18"),
        ("#### 18 dollars.", "18 dollars"),
        ("### 3", None),
    ],
)
def test_hash(completion: str, answer: str | None) -> None:
    assert answer_by("hash", completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>3</answer> no: <Answer>\n 4 </Answer>", "4"),
        ("<answer>3</answer> no: <answer>4", None),
        ("<answer>**5**</answer>", "5"),
        ("<answer>\n```python\nprint(1)\n```\n</answer>", "print(1)"),
        ("<answer>_ _ Q _</answer>", "_ _ Q _"),
        ("<answer></answer>", None),
        ("</answer>4<answer>", None),
        ("İİİ<answer>4</answer>", "4"),  # a letter that grows in lower case
    ],
)
def test_answer_tag(completion: str, answer: str | None) -> None:
    assert answer_by("answer_tag", completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ('{"reasoning": "9 * 2 = 18", "answer": "18"}', "18"),
        ('{"answer": 18}', "18"),
        ('{"answer": -1,234.5, "unit": "m"}', "-1,234.5"),
        ('{"answer": 220 + 90 + 60\n}', "220 + 90 + 60"),
        ('{"answer": $2050\n}', "$2050"),
        ("{'answer': '18'}", "18"),
        ('```json\n{"answer": "18"}\n```</s></s>', "18"),
        ('{"answer": "3"}\nThe final answer is `"answer": "4"`', "4"),
        ('{"answer": "answer": "7.5"\n}', "7.5"),  # seen in real traces
        (r'{"reasoning": "by \(x\)", "answer": "\(18\)"}', "18"),  # \( is no JSON escape
        (r'{"answer": "\frac{1}{2}"}', r"\frac{1}{2}"),  # \f is one, but not meant
        (r'{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        (r'{"answer": "5\" wide \u00bd\/1"}', '5" wide ½/1'),
        ('{"answer": "he said "5" ok", "x": 1}', 'he said "5" ok'),
        ('{"answer": "line 1\nline 2"}', "line 1\nline 2"),
        ('{"answer": "18\n}\n```', "18"),  # the closing quote is missing
        ('{"answer": "18,\n "note": "x"}', "18"),
        ('{"answer": "1', None),  # cut: digits may be missing
        ('{"answer": 1', None),
        ('{"answer": ', None),
        ('{"answer": null}', None),
        ('{"answer": {"a": 1}}', None),
        ('{"answer": [1, 2]}', "[1, 2]"),
        ('{"answer": ""}', None),
        ('{"answers": "18"}', None),
        ("18", None),
    ],
)
def test_json_value(completion: str, answer: str | None) -> None:
    assert answer_by("json:answer", completion) == answer


@pytest.mark.parametrize(
    ("completion", "opens", "answer"),
    [
        ("<think> 3 or 4? </think> 5", False, "5"),
        ("3 or 4? </think> 5", True, "5"),
        ("<think> 3 </think> hm <think> 4 </think> 5", False, "5"),
        ("<think> so it may be 3", False, None),  # cut while thinking: no interim number counts
        ("<think> 3 </think> <think> 4", False, None),
        ("so it may be 3", True, None),  # the prompt opened the block
        ("so it may be 3", False, "3"),
    ],
)
def test_only_the_text_after_the_thinking_is_read(completion: str, opens: bool, answer: str | None) -> None:
    assert extract(completion, parse_rules(["last_number"]), prompt_opens_think=opens).answer == answer


def test_the_first_rule_that_finds_something_wins_and_is_named() -> None:
    rules = parse_rules(["hash", "boxed", "last_number"])
    assert extract(r"\boxed{5} 6", rules) == ("5", "boxed", (0, 9))
    assert extract(r"#### 4 \boxed{5} 6", rules) == (r"4 \boxed{5} 6", "hash", (0, 18))
    assert extract("6", rules) == ("6", "last_number", (0, 1))
    assert extract("six", rules) == (None, "", None)


@pytest.mark.parametrize(
    ("rule", "completion", "piece"),
    [
        ("boxed", r"so \boxed{41}, no: $\boxed{ 42 }$.", r"\boxed{ 42 }"),
        ("boxed", r"\boxed{7 + \fbox{8}}", r"\boxed{7 + \fbox{8}}"),
        ("boxed", r"$\boxed \frac{3}{4}$", r"\boxed \frac{3}{4}"),
        ("boxed", r"\boxed 7.", r"\boxed 7"),
        ("boxed", r"<think>\boxed{1}</think> so \boxed{2}", r"\boxed{2}"),
        ("hash", "#### 3\nno\n####  5 \n####\n", "####  5"),
        ("answer_tag", "<answer>3</answer> <Answer>\n 4 </Answer>.", "<Answer>\n 4 </Answer>"),
        ("last_number", "13 eggs, so $1,026.50.", "$1,026.50"),
        ("after:A:", "A: 3\n A:  $4.50.\nbye", "A:  $4.50"),
        ("after:Answer:", "**Answer:** 26", "**Answer:** 26"),
        ("after:Answer:", "so **Answer: 26**, bye", "**Answer: 26**"),
        ("after:A:", "A: **5**.", "A: **5**"),
        ("hash", "**#### 18**", "**#### 18**"),
        ("last_number", "1\u200b it is −１２.", "−１２"),
        ("boxed", "\u200b１\u200b \\boxed{\u200b６\u200b} ６", "\\boxed{\u200b６\u200b}"),
        ("json:answer", '{"reasoning": "18", "answer": "18"}', '"answer": "18"'),
        ("json:answer", "{'answer': '18'}", "'answer': '18'"),
        ("json:answer", '{"answer": 1,234 }', '"answer": 1,234'),
        ("json:answer", '{"answer": "18,\n}', '"answer": "18'),
        ("json:answer", '{"answer": [1, 2]}', '"answer": [1, 2]'),
    ],
)
def test_the_span_is_the_answer_with_its_wrapper(rule: str, completion: str, piece: str) -> None:
    found = extract(completion, parse_rules([rule]))
    assert found.span is not None and completion[slice(*found.span)] == piece


RULES = {
    "boxed": "so \\boxed{%s}. bye",
    "hash": "x = 1\n#### %s\nbye",
    "answer_tag": "x <answer>%s</answer>. bye",
    "after:A:": "USA: x\nA: %s\nbye",
    "after:The answer is": "There are 9, so the answer is %s\nbye",
    "after:Answer:": "so\n\n**Answer:** %s\nbye",
    "json:answer": '{"why": "x", "answer": "%s"}\nbye',
    "last_number": "9, so it is %s",
    "choice_letter": "(A)? The answer is %s\nbye",
    "yes_no": "No? The answer is %s\nbye",
}


def completion_of(rule: str, wrapped: str) -> str:
    return RULES[rule] % (json.dumps(wrapped, ensure_ascii=False)[1:-1] if rule == "json:answer" else wrapped)


ANSWERS_OF = {
    "last_number": ["5", "-3", "1,234.5", "2.5e3", "10^5", "3/4", r"\frac{3}{4}", "45%"],
    "choice_letter": ["B", "D"],
    "yes_no": ["Yes", "no", "False"],
}


@pytest.mark.parametrize("rule", RULES)
def test_markup_round_the_answer_changes_neither_answer_nor_rule_and_stays_in_the_span(rule: str) -> None:
    num_tried = 0
    for markup, answer in product(MARKUPS, ANSWERS_OF.get(rule, ["5", "-1,234", "New York", "_ _ Q _", "C*", "x + y"])):
        wrapped = markup.format(answer)
        if ("\n" in wrapped and rule == "hash") or ("*" in answer and "*" in markup):
            continue  # a line of ``` alone; `*C**` is another text
        completion = completion_of(rule, wrapped)
        found = extract(completion, parse_rules([rule]))
        assert (found.answer, found.rule) == (answer, rule), completion
        assert found.span is not None and answer in plain(completion[slice(*found.span)]), completion
        num_tried += 1
    assert num_tried >= 2 * len(MARKUPS) - 4


@given(st.sampled_from([name for name in RULES if name != "json:answer"]), st.sampled_from(MARKUPS), st.integers())
def test_what_a_rule_reads_it_reads_again_from_the_span_alone(rule: str, markup: str, number: int) -> None:
    answer = {"choice_letter": "ABCDE"[number % 5], "yes_no": "yes"}.get(rule, str(number))
    completion = completion_of(rule, markup.format(answer))
    found = extract(completion, parse_rules([rule]))
    assert found.span is not None
    assert found.answer is not None and answer_by(rule, completion[slice(*found.span)]) == found.answer


def test_the_span_read_alone_gives_the_same_answer(shared_data: Path) -> None:
    """Of every third real trace by every rule that finds an answer in it. JSON needs its braces again."""
    names = ["boxed", "hash", "answer_tag", "last_number", "after:A:", "json:answer"]
    found = Counter[str]()
    for file in sorted((shared_data / "traces").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            completions = [json.loads(line)["response"] for line in lines][::3]
        for name, completion in product(names, completions):
            extraction = extract(completion, parse_rules([name]))
            if extraction.span is not None:
                piece = completion[slice(*extraction.span)]
                alone = f"{{{piece}\n}}" if name == "json:answer" else piece
                assert answer_by(name, alone) == extraction.answer, (name, piece)
                found[name] += 1
    assert min(found[name] for name in names if name != "hash") > 250, found


def test_unknown_rules_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown extraction rule 'boxd'\. Did you mean boxed"):
        parse_rules(["boxd"])
    with pytest.raises(ValueError, match="'json' lacks its argument: write json:KEY"):
        parse_rules(["json"])
    with pytest.raises(ValueError, match="No extraction rule"):
        parse_rules([])
    with pytest.raises(ValueError, match="list of names"):
        parse_rules("boxed")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "unit",
    [
        *["{", r"\boxed{", "7", "#", "<answer>", '"answer": "', " ", "\\", "A:", "-", "1,", "é"],
        *["answer is (", "**answer:", '"', "６", "1 1/", "7^", "1{,}", "####**", "No answer is A or "],
    ],
)
def test_no_rule_needs_more_than_linear_time(rule: str, unit: str) -> None:
    assert_linear(lambda text: answer_by(rule, text), unit, 50_000)


@pytest.mark.parametrize(
    ("name", "rule", "least"),
    [
        ("zeroeval_gsm8k_weak_to_strong", "json:answer", 9_150),  # of 9,233
        ("openai_gsm8k_example_model_solutions", "after:A:", 5_265),  # of 5,276; the other 11 ran into the limit
        ("rgym_math_mistral-small-24b", "answer_tag", 5_001),  # of 5,200; the other 199 wrote no tag
        ("r1_distill_longcot_with_token_ids", "boxed", 37),  # of 112; 52 were cut while thinking
        ("qwen25math_example_math100", "boxed", 800),  # of 800
    ],
)
def test_real_traces_yield_their_answers(shared_data: Path, name: str, rule: str, least: int) -> None:
    with gzip.open(shared_data / "traces" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        completions = [json.loads(line)["response"] for line in lines]
    assert sum(answer_by(rule, completion) is not None for completion in completions) >= least
