"""Where the program begins: `python lightning_cli.py`, the console script `w2sr`, `python -m w2sr`."""

from __future__ import annotations

import sys

from w2sr import verbs


def main() -> None:
    """Runs a verb, or hands over to the Trainer's command line, whose imports take seconds."""
    if sys.argv[1:] and sys.argv[1] in verbs.VERBS:
        verbs.run(sys.argv[1:])
        return
    from w2sr.cli import main as run

    run()


if __name__ == "__main__":
    main()
