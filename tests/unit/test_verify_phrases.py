"""What stands after a phrase, and the last number, on completions whose answers the eye can see."""

from __future__ import annotations

import pytest

from w2sr.verify import extract, parse_rules


def answer_by(rule: str, completion: str) -> str | None:
    return extract(completion, parse_rules([rule])).answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so she has 16 - 3 = 13 eggs.", "13"),
        ("so it falls to -13.", "-13"),
        ("16-3", "3"),  # an operand stands before the minus
        ("(x)-3", "3"),
        ("x = -3", "-3"),
        ("that makes −3 degrees", "-3"),
        ("it falls to –5.", "-5"),  # an en dash
        ("3–5", "5"),  # a range
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("10 -5", "5"),
        ("x = - 5", "-5"),
        ("- 5 apples", "5"),  # a bullet
        ("the answer—5", "5"),
        ("10,-5", "-5"),
        ("$1,234.50.", "$1,234.50"),
        ("-$5", "-$5"),
        ("it is 3.", "3"),
        ("it is .5", ".5"),
        ("1, 2, 3", "3"),
        ("3/4 of it", "3/4"),
        (r"it is -\frac{3}{4}.", r"-\frac{3}{4}"),
        ("45%", "45%"),
        (r"45\%", r"45\%"),
        ("5 apples in room B12", "5"),  # a digit inside a word is no number
        ("2.5e3", "2.5e3"),
        ("3.9E+08", "3.9E+08"),
        ("10^5", "10^5"),
        (r"2^{-10}", r"2^{-10}"),
        ("10⁵", "10⁵"),
        (r"about 2.5 \times 10^{3}.", r"2.5 \times 10^{3}"),
        ("1/10^5", "1/10^5"),
        ("0x1F", "0x1F"),
        ("25 cm^2", "25"),  # the exponent of a unit is no number
        ("4 + x**2", "4"),
        ("**4**", "4"),
        ("12 and a_{1}", "12"),
        ("45^\\circ", "45"),
        ("2 1/2 cups", "2 1/2"),
        (r"-2\frac{1}{2}", r"-2\frac{1}{2}"),
        ("2½", "2½"),
        ("½", "½"),
        ("7 3/2", "3/2"),  # no mixed number
        ("1{,}234", "1{,}234"),
        (r"1\,234", r"1\,234"),
        ("1\u202f234", "1,234"),
        ("1,2,3", "3"),
        ("€18", "€18"),
        ("-€5", "-€5"),
        ("18 €", "18"),
        ("12 on the 3rd day", "12"),
        ("10^{th}, or 12", "12"),
        ("he is 3rd", "3"),
        ("６", "6"),
        ("٣", "3"),
        ("no number", None),
    ],
)
def test_last_number(completion: str, answer: str | None) -> None:
    assert answer_by("last_number", completion) == answer


@pytest.mark.parametrize(
    ("rule", "completion", "answer"),
    [
        ("after:A:", "2+2=4\nA: 26", "26"),
        ("after:A:", "A: 3\nA: $4.50.", "$4.50"),
        ("after:A:", "in the USA: 26", None),
        ("after:Answer:", "**Answer:** 26", "26"),
        ("after:Answer:", "Answer:\n\n26\nbye", "26"),
        ("after:Answer:", "Answer:", None),
        ("after:=>", "x=>26", "26"),
        ("after:The answer is", "There are 10 such numbers, so the answer is 10.", "10"),
        ("after:The answer is", "The answer is: 10", "10"),
        ("after:answer is", "The final answer is $14{,}916$. I hope it is correct.", "14{,}916"),
        ("after:answer is", "The answer is 10. Thus we are done.", "10"),
        ("after:answer is", "The answer is 10 apples. Thus we are done.", "10 apples"),
        ("after:answer is", "The answer is 3.5. She is done.", "3.5"),
        ("after:answer is", "The answer is St. Louis in Missouri.", "St. Louis in Missouri"),
        ("after:answer is", "The answer is 1. Paris 2. London", "1. Paris 2. London"),
        ("after:A:", "A: 5。所以 6", "5"),
        ("after:the answer is", "The answer isn't 10", None),
        ("after:A:", "a: 5", None),  # case counts for a label without a word
        ("after:A:", "A: **5**.", "5"),
        ("after:A:", "**A:** 5", "5"),
        ("after:A:", "so **A: 5** because of 6", "5"),
        ("after:A:", "A: **5** apples", "5 apples"),
        ("after:A:", "A: **", None),
        ("after:A:", "A: C*", "C*"),
        ("after:A:", "A: __init__", "__init__"),
        ("after:A:", "A: _ _ Q _", "_ _ Q _"),
        ("after:A:", "A: ] ] >", "] ] >"),
        ("after:A:", "A: 1, 2, ...", "1, 2, ..."),
        ("after:A:", "A:\n\n- 26", "26"),  # a bullet
        ("after:A:", "A: ```\nx = 1\ny = 2\n```\nbye", "x = 1\ny = 2"),
        ("after:A:", "A: 5\u200b。", "5"),
        ("after:answer is", r"the answer is \(B\)", "B"),
        ("after:answer is", r"the answer is \boxed{yes}", "yes"),
        ("after:answer is", 'The answer is "Yes".', "Yes"),
        ("after:answer is", "(so the answer is 5).", "5"),
        ("after:answer is", "(so the answer is (5)).", "(5)"),
        ("after:answer is", "[ [ { so the answer is } ] ]", "} ] ]"),  # brackets of the problem
        ("after:answer is", r"\textbf{The answer is } 5", "5"),
        ("after:answer is", r"\[ \text{The answer is } 5 \]", "5"),
        ("after:answer is", "the answer is:\n\\[\n\\boxed{6}\n\\]\nbye", "6"),
        ("after:answer is", "<answer>The answer is 5</answer>", "5"),
        ("after:answer is", "The answer is:\n<answer>5</answer>", "5"),
        ("after:answer is", '{"why": "1 + 1, so the answer is 2.",\n "x": 5}', "2"),
        ("after:答案：", "答案：**５**。", "5"),
    ],
)
def test_after(rule: str, completion: str, answer: str | None) -> None:
    assert answer_by(rule, completion) == answer


@pytest.mark.parametrize(
    ("rule", "completion", "answer"),
    [
        ("choice_letter", "The answer is (B), not A.", "B"),
        ("choice_letter", "the answer is A? No. **Answer:** Option C.", "C"),
        ("choice_letter", "**Answer**: vitamin C (D)", "D"),
        ("choice_letter", "Final answer: $B$", "B"),
        ("choice_letter", "the answer is a bank", None),
        ("choice_letter", "The answer is DNA", None),
        ("choice_letter", "(B)", None),
        ("choice_letter", "Answer: I think it is B", "B"),
        ("choice_letter", "Answer: A company is B", "B"),
        ("choice_letter", "Answer: A company", None),
        ("choice_letter", "Answer: I am not sure", None),
        ("choice_letter", "Answer: A", "A"),
        ("choice_letter", "Answer: I.", "I"),
        ("choice_letter", "The answer is A because B is wrong", "A"),
        ("choice_letter", "The answer is: B because A is wrong", "B"),
        ("choice_letter", "Answer: A) bath", "A"),
        ("choice_letter", "Answer: A. Bath", "A"),
        ("choice_letter", "Answer: A - bath", "A"),
        ("choice_letter", "Answer: B) text", "B"),
        ("choice_letter", "answer: b", "B"),
        ("choice_letter", "Answer: (b) bath", "B"),
        ("choice_letter", "Answer: **B**", "B"),
        ("choice_letter", "**Answer:**\n\nB", "B"),
        ("choice_letter", "## Final Answer\n\n**B**", "B"),
        ("choice_letter", "The correct option is B.", "B"),
        ("choice_letter", "The answer is 'B'.", "B"),
        ("choice_letter", r"The answer is \(\boxed{\text{(B)}}\).", "B"),
        ("choice_letter", '{"answer": "B"}', "B"),
        ("choice_letter", "Answer：（Ｂ）。", "B"),
        ("choice_letter", "答え. Answer: B、bath", "B"),
        ("choice_letter", "Answer: B is wrong, so it is C", "C"),
        ("choice_letter", "Answer: not (B) but (C)", "C"),
        ("choice_letter", "Answer: not (B)", None),
        ("choice_letter", "Answer: A or B", None),
        ("choice_letter", "Answer: (B) and (D)", None),
        ("choice_letter", "The answer is C++", None),
        ("choice_letter", "The answer is R = 6", None),
        ("choice_letter", "Answer: A\nAnswer: B\nAnswer: C", "C"),
        ("choice_letter", "The answer is (B). I hope this answer is clear.", "B"),
        ("choice_letter", "The answer is B. Answer:", None),  # cut off
        ("yes_no", "No? So the answer is **yes**.", "yes"),
        ("yes_no", "Answer: No, since frost is rare", "No"),
        ("yes_no", "the answer is not known", None),
        ("yes_no", "the answer is no one", None),
        ("yes_no", "yes", None),
        ("yes_no", 'The answer is "Yes".', "Yes"),
        ("yes_no", r"the answer is \boxed{yes}", "yes"),
        ("yes_no", r"the answer is \(\text{No}\)", "No"),
        ("yes_no", "**Answer:** Yes", "Yes"),
        ("yes_no", "Answer：ＹＥＳ。", "YES"),
        ("yes_no", "Answer: I think it is no.", "no"),
        ("yes_no", "the answer is definitely yes", "yes"),
        ("yes_no", "the answer is yes and no", None),
        ("yes_no", "the answer is not yes", None),
        ("yes_no", "Answer: no valid solution", None),
        ("yes_no", "The answer is no. I hope this answer is useful.", "no"),
        ("yes_no", "<think>the answer is yes", None),
    ],
)
def test_rules_for_words_after_the_answer_is(rule: str, completion: str, answer: str | None) -> None:
    assert extract(completion, parse_rules([rule])).answer == answer
