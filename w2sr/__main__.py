"""Where the program begins: `python lightning_cli.py`, the console script `w2sr`, `python -m w2sr`."""

from __future__ import annotations

import sys

from w2sr import verbs
from w2sr.slurm import hold_requeue


def main() -> None:
    """Runs a verb, or hands over to the Trainer's command line.

    That one's imports take seconds; a requeue that SLURM asks for meanwhile waits for their end.
    """
    if sys.argv[1:] and sys.argv[1] in verbs.VERBS:
        verbs.run(sys.argv[1:])
        return
    hold_requeue()
    from w2sr.cli import main as run

    run()


if __name__ == "__main__":
    main()
