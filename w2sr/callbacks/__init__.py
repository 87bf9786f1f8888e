"""The Lightning callbacks: what a run measures, shows and leaves behind."""

from w2sr.callbacks.evaluation import EvalWriter, FinalTable
from w2sr.callbacks.export import ExportStudent
from w2sr.callbacks.rollout_text import RolloutText
from w2sr.callbacks.samples import SampleText
from w2sr.callbacks.stopping import StopOnSignal
from w2sr.callbacks.throughput import Throughput

__all__ = ["EvalWriter", "ExportStudent", "FinalTable", "RolloutText", "SampleText", "StopOnSignal", "Throughput"]
