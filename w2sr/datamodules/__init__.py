"""The LightningDataModules: traces to train on, problems to sample from."""

from w2sr.datamodules.problems import ProblemDataModule
from w2sr.datamodules.traces import TraceDataModule

__all__ = ["ProblemDataModule", "TraceDataModule"]
