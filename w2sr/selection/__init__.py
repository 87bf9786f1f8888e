"""Which traces to keep: verdict, gates on single traces, gates on sets of traces, and what each gate removed.

Order of the gates: whose verdict it is, the vote of an ensemble (which counts all traces, right and wrong); then keep
and the gates that judge a trace by itself (finish, has_answer, not_looping, length, scores; among these order changes
only who is named in the table); then dedupe, the choice among teachers, the mixture, the best by a score, the cap per
problem (so that a problem's share is not spent on copies), and last the controls of count and tokens (so that the
number asked for is the number given).

The selection is a function of the set of traces: they are put into the order of their ids first, because the order in
which concurrent samples were finished and stored is an accident.
"""

from w2sr.selection.choose import select
from w2sr.selection.gates import Scores, known_tokens
from w2sr.selection.loops import is_looping, repeated_frac, tail_loop_chars
from w2sr.selection.strategy import Gates, Portion
from w2sr.selection.table import GateRow, Selection, format_table

__all__ = [
    "GateRow",
    "Gates",
    "Portion",
    "Scores",
    "Selection",
    "format_table",
    "is_looping",
    "known_tokens",
    "repeated_frac",
    "select",
    "tail_loop_chars",
]
