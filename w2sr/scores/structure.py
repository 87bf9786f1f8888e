"""How a completion is built, from its text alone: steps, connectives, arithmetic, self-checks.

    structure = Σ w_i part_i / Σ w_i     over the parts that are defined, in [0, 1]

    part                            w     value
    steps                           0.3   min(1, num_steps / 6)
    connectives                     0.3   min(1, connectives per 100 words / 4)
    equations                       0.3   equation_validity; undefined where no equation is written
    self-checks                     0.1   min(1, num_self_checks / 1)

A heuristic, and no more: the paper says that structure teaches, not how to measure it. The weights and the ceilings
are chosen so that ordinary solutions of school mathematics spread over the range; nothing was fitted, English words are
counted, and a text that lists connectives scores high on them. Compare arms by it; do not read it as quality.
"""

from __future__ import annotations

import math
import re

from w2sr.scores.arithmetic import equation_validity

FULL_STEPS = 6
FULL_CONNECTIVES = 4.0
WEIGHTS = {"steps": 0.3, "connectives": 0.3, "equations": 0.3, "self_checks": 0.1}
MIN_STEP_WORDS = 3
MAX_CHARS = 200_000
"""A longer completion is judged by its beginning."""

_STEP_MARK = re.compile(r"(?i)\bstep\s+\d{1,3}\b")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|\\n(?![a-z])")
_WORD = re.compile(r"[^\W_]+(?:[.'’][^\W_]+)*")
_CONNECTIVE = re.compile(
    r"(?i)\b(?:therefore|thus|hence|so|because|since|then|consequently|it follows|which means|this means|"
    r"which gives|this gives)\b"
)
_SELF_CHECK = re.compile(
    r"(?i)\b(?:let me (?:double[- ])?check|let['’]s (?:double[- ])?check|double[- ]check(?:ing)?|re-?check(?:ing)?|"
    r"wait|verify|verifies|verifying|verification|to check|sanity check)\b"
)

COLUMNS = ("structure", "num_steps", "connectives", "equation_validity", "num_self_checks")


def structure_scores(completion: str) -> dict[str, float]:
    """The columns of COLUMNS for one completion: the combined score in [0, 1] and what it is made of.

    `connectives` are per 100 words; `equation_validity` is NaN where no equation is written.

    >>> structure_scores("She has 3 pens. Tom gives her 4, so she has 3 + 4 = 7 pens.")["num_steps"]
    2.0
    """
    text = completion[:MAX_CHARS]
    num_words = len(_WORD.findall(text))
    connectives = 100 * len(_CONNECTIVE.findall(text)) / num_words if num_words else 0.0
    steps, checks = float(num_steps(text)), float(len(_SELF_CHECK.findall(text)))
    validity = equation_validity(text)
    parts = {
        "steps": min(1.0, steps / FULL_STEPS),
        "connectives": min(1.0, connectives / FULL_CONNECTIVES),
        "equations": validity,
        "self_checks": min(1.0, checks),
    }
    defined = {name: value for name, value in parts.items() if not math.isnan(value)}
    weight = sum(WEIGHTS[name] for name in defined)
    combined = sum(WEIGHTS[name] * value for name, value in defined.items()) / weight
    return dict(zip(COLUMNS, (combined, steps, connectives, validity, checks), strict=True))


def num_steps(text: str) -> int:
    """Steps of a text: its marks "Step k" where there are two or more, else its sentences of three words or more.

    A line break ends a sentence.

    >>> num_steps("Step 1: add. Step 2: multiply."), num_steps("3 + 4 = 7. Yes.")
    (2, 1)
    """
    marks = len(_STEP_MARK.findall(text))
    if marks >= 2:
        return marks
    return sum(len(_WORD.findall(part)) >= MIN_STEP_WORDS for part in _SENTENCE_END.split(text))
