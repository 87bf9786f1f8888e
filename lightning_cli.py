"""Entry point: `python lightning_cli.py fit --config configs/w2sr_p.yaml`. The same as the console script `w2sr`."""

from w2sr.__main__ import main

if __name__ == "__main__":
    main()
