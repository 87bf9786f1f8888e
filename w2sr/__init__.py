"""Weak-to-Strong Reasoning (arXiv 2505.20072) under PyTorch Lightning."""

__version__ = "0.1.0"
