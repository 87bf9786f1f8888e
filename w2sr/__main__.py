"""Where the program begins: `python lightning_cli.py`, the console script `w2sr`, `python -m w2sr`."""

from w2sr.slurm import hold_requeue


def main() -> None:
    """Runs `w2sr.cli.main`. Its imports take seconds; a requeue that SLURM asks for meanwhile waits for their end."""
    hold_requeue()
    from w2sr.cli import main as run

    run()


if __name__ == "__main__":
    main()
