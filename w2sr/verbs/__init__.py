"""The verbs that are not the Trainer's: one module each, with `main(argv)`. `w2sr.cli` dispatches them by name."""
