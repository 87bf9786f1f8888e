"""The verbs that are not the Trainer's: one module each, with `main(argv)`.

Each is imported when it is called, and what takes seconds to import (torch, Lightning) only where a verb needs it: most
answer `--help`, and refuse, without.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

VERBS = (
    "ask",
    "audit",
    "corrupt",
    "decontaminate",
    "export",
    "merge",
    "puzzles",
    "report",
    "score",
    "submit",
    "traces",
    "vote",
)


def run(words: Sequence[str]) -> None:
    """Runs the verb that the first word names. What a user can mend ends with one message and exit status 2;
    W2SR_TRACEBACK=1 shows where it was raised. Ctrl-C ends with 130."""
    try:
        importlib.import_module(f"{__name__}.{words[0]}").main(words[1:])
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it any more
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        end_unread()
    except (ValueError, OSError) as error:
        if os.environ.get("W2SR_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def end_unread() -> None:
    """Whoever read our output wanted no more (`| head`): the end that a shell expects, without a second complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
