"""The program of one grading process: JSON lines in, JSON lines out, math-verify between. Started by workers.py.

Imports nothing of w2sr, so that it starts as a plain script in any working directory, and neither torch nor numpy.

stdin:  {"id": 7, "answer": "1/2", "reference": "\\frac{1}{2}"}
stdout: {"ready": true} once; then {"id": 7, "equal": true, "reason": "…", "retire": false} per request
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

RETIRE_SHARE = 0.5
"""A process that came to hold this share of its memory limit asks to be replaced: math-verify turns a MemoryError into
"not equal", which must not happen to an innocent answer."""

_LATEX = (LatexExtractionConfig(boxed_match_priority=0),)


def read(text: str) -> list[Any]:
    """The sympy expression of one answer, and its text. No search for other numbers where LaTeX cannot be read."""
    expressions: list[Any] = parse(
        rf"\boxed{{{text}}}", _LATEX, extraction_mode="first_match", fallback_mode="first_match", parsing_timeout=None
    )
    return expressions


read_reference = lru_cache(maxsize=1024)(read)


def grade(answer: str, reference: str) -> tuple[bool, str]:
    """Whether math-verify calls the answer equal to the reference, and one sentence why."""
    expressions = read(answer)
    if verify(read_reference(reference), expressions, timeout_seconds=None):
        return True, "math-verify: equal"
    if all(isinstance(expression, str) for expression in expressions):
        return False, "math-verify: the answer is not readable mathematics"
    return False, "math-verify: not equal"


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
        equal, reason = grade(request["answer"], request["reference"])
        signal.alarm(0)
        retire = _resident_bytes() > RETIRE_SHARE * memory_limit_bytes
        reply = {"id": request["id"], "equal": equal, "reason": reason, "retire": retire}
        print(json.dumps(reply), file=replies, flush=True)


def _resident_bytes() -> int:
    """Peak resident memory of this process in bytes (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
