"""Systematic errors of a known kind and rate in the text of traces, with the ground truth of what was changed."""

from w2sr.corruption.errors import Change, Corrupted, Kind, corrupt_text
from w2sr.corruption.traces import Corruption, CorruptionReport, corrupt_traces, restored

__all__ = [
    "Change",
    "Corrupted",
    "Corruption",
    "CorruptionReport",
    "Kind",
    "corrupt_text",
    "corrupt_traces",
    "restored",
]
