"""The program of one grading process: JSON lines in, JSON lines out, math-verify between. Started by workers.py.

Imports nothing of w2sr, so that it starts as a plain script in any working directory, and neither torch nor numpy.

stdin:  {"id": 7, "pairs": [["1/2", "\\frac{1}{2}"]]}
stdout: {"ready": true} once; then {"id": 7, "equal": [true], "reason": "…", "retire": false} per request
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Abs, Expr, Float

RETIRE_SHARE = 0.5
"""A process that came to hold this share of its memory limit asks to be replaced: math-verify turns a MemoryError into
"not equal", which must not happen to an innocent answer."""

EXACT_DIFFERENCE, DECIMAL_DIFFERENCE = 1e-12, 5e-6
"""A larger relative difference makes two constants different: math-verify takes absolute differences, so that 1/2^64
and 1/2^65 are equal to it. The second holds where a decimal, of six digits at least, stands in one of them."""

_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)


@lru_cache(maxsize=1024)
def read(text: str) -> list[Any]:
    """The sympy expression of one answer, and its text. No search for other numbers where LaTeX cannot be read."""
    expressions: list[Any] = parse(
        rf"\boxed{{{text}}}", _LATEX, extraction_mode="first_match", fallback_mode="first_match", parsing_timeout=None
    )
    return expressions


def grade(first: str, second: str) -> tuple[bool, str]:
    """Whether math-verify calls the two equal whichever is the reference, and one sentence why."""
    sides = read(first), read(second)
    for side, text in zip(sides, (first, second), strict=True):
        if all(isinstance(expression, str) for expression in side):
            return first == second, f"{text[:80]!r} is not readable mathematics"
    for reference, answer in (sides, sides[::-1]):
        if not verify(reference, answer, allow_set_relation_comp=True, timeout_seconds=None):
            return False, "not equal"
    if not _is_near(sides[0][0], sides[1][0]):
        return False, "equal to some digits only"
    return True, "equal"


def _is_near(first: Any, second: Any) -> bool:
    """Whether two constants differ by no more than rounding; True for all other expressions."""
    if not all(isinstance(side, Expr) and side.is_number for side in (first, second)):
        return True
    first, second = first.doit(), second.doit()
    allowed = DECIMAL_DIFFERENCE if first.has(Float) or second.has(Float) else EXACT_DIFFERENCE
    return bool(Abs((first - second).evalf(30)) <= allowed * Abs(first.evalf(30)))


def main(memory_limit_bytes: int, alarm_s: int) -> None:
    """Grades one request a line until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not reach the replies
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Builds regexes, parser tables and the paths of sums through sympy before the first clock runs.
    grade(r"x_{1}+\frac{1}{2}", r"\frac{1}{2}+x_{1}")
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(alarm_s)  # ends an orphan in a hung computation: the default action of SIGALRM kills the process
        graded = [grade(first, second) for first, second in request["pairs"]]
        signal.alarm(0)
        retire = _resident_bytes() > RETIRE_SHARE * memory_limit_bytes
        reasons = "; ".join(dict.fromkeys(reason for _, reason in graded))
        equal = [is_equal for is_equal, _ in graded]
        reply = {"id": request["id"], "equal": equal, "reason": f"math-verify: {reasons}", "retire": retire}
        print(json.dumps(reply), file=replies, flush=True)


def _resident_bytes() -> int:
    """Peak resident memory of this process in bytes (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
