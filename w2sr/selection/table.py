"""What a selection gives: the traces that are kept, and what each gate removed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from w2sr.types import Trace


@dataclass(frozen=True, slots=True)
class GateRow:
    """What one gate did, in traces."""

    gate: str
    num_in: int
    num_removed: int
    num_out: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The traces that are kept, in the order of their ids, and what each gate removed."""

    traces: list[Trace]
    table: list[GateRow]

    @property
    def num_problems(self) -> int:
        return len({trace.problem_id for trace in self.traces})

    @property
    def num_label_free(self) -> int:
        """How many of the traces bear a verdict that no reference answer gave."""
        return sum(trace.is_label_free for trace in self.traces)

    def format_table(self) -> str:
        """The table as aligned plain text."""
        return format_table(self.table)

    def to_json(self) -> str:
        """The table and the counts as JSON text, to be stored with a run."""
        content = {
            "num_traces": len(self.traces),
            "num_problems": self.num_problems,
            "num_label_free": self.num_label_free,
            "gates": [asdict(row) for row in self.table],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def format_table(table: Sequence[GateRow]) -> str:
    """Aligned plain text: gate, traces in, removed, out."""
    cells = [("gate", "in", "removed", "out")]
    cells += [(row.gate, f"{row.num_in:,}", f"{row.num_removed:,}", f"{row.num_out:,}") for row in table]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = []
    for gate, *numbers in cells:
        right = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([gate.ljust(widths[0]), *right]))
    return "\n".join(lines)
