"""The parts of `benchmarks/gpu.py`, a noun a file: each part is a function of a Bench that yields rows of its table."""
