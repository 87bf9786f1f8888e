"""From problems to a teacher's traces: sampled, verified, counted, and stopped early where the format is wrong."""

from w2sr.distillation.gate import FormatGate
from w2sr.distillation.plan import make_recipe, problems_that_fit
from w2sr.distillation.progress import TraceProgress
from w2sr.distillation.stream import Stamp, distill
from w2sr.distillation.summary import Work, summary
from w2sr.distillation.tally import Tally

__all__ = [
    "FormatGate",
    "Stamp",
    "Tally",
    "TraceProgress",
    "Work",
    "distill",
    "make_recipe",
    "problems_that_fit",
    "summary",
]
