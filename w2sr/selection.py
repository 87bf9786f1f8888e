"""Which traces to keep: verdict, gates on single traces, gates on sets of traces, and what each gate removed.

Order of the gates: first keep, then the gates that judge a trace by itself (finish, has_answer, not_looping, length;
among these order changes only who is named in the table), then dedupe, then the cap per problem (so that a problem's
share is not spent on copies), then the control of count or tokens (so that the number asked for is the number given).

The selection is a function of the set of traces: they are put into the order of their ids first, because the order in
which concurrent samples were finished and stored is an accident.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

from w2sr.types import Keep, Trace

Finish = Literal["stop", "stop_or_unknown", "any"]
Choose = Literal["first", "shortest", "longest", "random"]
Gate = Callable[[list[Trace]], list[Trace]]

TAIL_CHARS = 8_000
"""How much of the end is searched for an exact period. A period is found up to a third of this."""
TAIL_REPEATS = 3
TAIL_MIN_CHARS = 200
"""An exact period counts from this length on: '0000', '}}}}' and a sum of equal terms stay below it."""
SHARE_WORDS = 2_048
SHARE_NGRAM = 8
SHARE_MIN_WORDS = 256
"""A shorter text is not judged by its share: an honest sum of forty equal terms is all repetition, a loop is long."""
SHARE_LIMIT = 0.7
"""Above this share of repeated 8-grams the end is a loop with small changes. Honest casework reaches 0.56 to 0.68."""

_WORD = re.compile(r"\w+|[^\w\s]")


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

    def format_table(self) -> str:
        """The table as aligned plain text."""
        return format_table(self.table)

    def to_json(self) -> str:
        """The table and the counts as JSON text, to be stored with a run."""
        content = {
            "num_traces": len(self.traces),
            "num_problems": self.num_problems,
            "gates": [asdict(row) for row in self.table],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Gates:
    """What a trace must be besides having the verdict that `keep` asks for.

    Attributes:
        finish: `stop` wants traces that are known to have ended by themselves; `stop_or_unknown` also those whose
            source does not say; `any` also those that were cut off.
        has_answer: wants an extracted answer.
        not_looping: drops completions that `is_looping`.
        min_tokens: least num_tokens, inclusive.
        max_tokens: greatest num_tokens, inclusive.
        dedupe: of a problem's completions that differ only in white space, keeps one.
        max_per_problem: how many traces a problem may keep.
        choose: which those are: `first` by sample index and then by the teacher's name, `shortest` or `longest` by
            num_tokens, or `random` by seed.
        num_traces: exactly so many traces at random, for comparison at equal counts. For one seed a smaller number is
            a subset of a larger one.
        num_tokens: at random as many traces as fit into so many tokens, for comparison at equal tokens; nested
            likewise.
        seed: of `random`, `num_traces` and `num_tokens`. A trace's place depends on the seed and its id alone.
    """

    finish: Finish = "stop"
    has_answer: bool = False
    not_looping: bool = True
    min_tokens: int | None = None
    max_tokens: int | None = None
    dedupe: bool = True
    max_per_problem: int | None = None
    choose: Choose = "first"
    num_traces: int | None = None
    num_tokens: int | None = None
    seed: int = 0

    @property
    def need_tokens(self) -> bool:
        """Whether some gate asks for the traces' numbers of tokens."""
        wanted = (self.min_tokens, self.max_tokens, self.num_tokens)
        by_length = self.max_per_problem is not None and self.choose in ("shortest", "longest")
        return by_length or any(value is not None for value in wanted)


def select(traces: Iterable[Trace], *, keep: Keep, **gates: Any) -> Selection:
    """Selects traces by verdict and gates.

    Args:
        traces: verified traces, each named by its trace_id once.
        keep: `P` the answer is right; `N` an answer was given and is wrong; `N_paper` everything that is not right,
            with missing answers and timeouts, as the authors did it; `all`.
        **gates: fields of `Gates`.

    Raises:
        ValueError: a trace without verdict or given twice, tokens that are needed but unknown, too few traces for
            num_traces or num_tokens, or nothing left.
    """
    wanted = Gates(**gates)
    _check_choices(keep, wanted)
    rows: list[tuple[str, Gate]] = [(f"keep={keep}", _rule(lambda trace: _is_kept(trace, keep)))]
    return _run(_ordered(traces), [*rows, *_single_gates(wanted), *_set_gates(wanted)])


def _single_gates(gates: Gates) -> list[tuple[str, Gate]]:
    """The gates that judge a trace by itself."""
    rows: list[tuple[str, Gate]] = []
    if gates.finish != "any":
        accepted = ("stop",) if gates.finish == "stop" else ("stop", "unknown")
        rows.append((f"finish={gates.finish}", _rule(lambda trace: trace.finish_reason in accepted)))
    if gates.has_answer:
        rows.append(("has_answer", _rule(lambda trace: trace.verdict != "no_answer" and trace.answer is not None)))
    if gates.not_looping:
        rows.append(("not_looping", _rule(lambda trace: not is_looping(trace.completion))))
    if (least := gates.min_tokens) is not None:
        rows.append((f"min_tokens={least}", _rule(lambda trace: known_tokens(trace) >= least)))
    if (most := gates.max_tokens) is not None:
        rows.append((f"max_tokens={most}", _rule(lambda trace: known_tokens(trace) <= most)))
    return rows


def _set_gates(gates: Gates) -> list[tuple[str, Gate]]:
    """The gates that judge a trace by the others."""
    rows: list[tuple[str, Gate]] = []
    seed = gates.seed
    if gates.dedupe:
        rows.append(("dedupe", _deduped))
    if (limit := gates.max_per_problem) is not None:
        gate = partial(_capped, limit=limit, choose=gates.choose, seed=seed)
        rows.append((f"max_per_problem={limit} ({gates.choose})", gate))
    if gates.num_traces is not None:
        gate = partial(_counted, num_traces=gates.num_traces, seed=seed)
        rows.append((f"num_traces={gates.num_traces} (seed {seed})", gate))
    if gates.num_tokens is not None:
        gate = partial(_budgeted, num_tokens=gates.num_tokens, seed=seed)
        rows.append((f"num_tokens={gates.num_tokens} (seed {seed})", gate))
    return rows


def _run(traces: list[Trace], gates: Sequence[tuple[str, Gate]]) -> Selection:
    table: list[GateRow] = []
    for name, gate in gates:
        num_in = len(traces)
        try:
            traces = gate(traces)
        except _TooFewError as error:
            raise ValueError(f"{name}: {error}\n{format_table(table)}") from error
        table.append(GateRow(name, num_in, num_in - len(traces), len(traces)))
    if not traces:
        raise ValueError(f"The selection keeps no trace; relax the gate that removed them.\n{format_table(table)}")
    return Selection(traces, table)


class _TooFewError(ValueError):
    """A control asks for more than there is."""


def _check_choices(keep: str, gates: Gates) -> None:
    for name, value, known in (
        ("keep", keep, Keep),
        ("finish", gates.finish, Finish),
        ("choose", gates.choose, Choose),
    ):
        if value not in get_args(known):
            raise ValueError(f"{name}={value!r} must be one of {', '.join(get_args(known))}.")


def _ordered(traces: Iterable[Trace]) -> list[Trace]:
    """The traces in the order of their ids, verified and each there once."""
    ordered = sorted(traces, key=lambda trace: (trace.problem_id, trace.sample_index, trace.teacher))
    unverified = [trace.trace_id for trace in ordered if not trace.verdict]
    if unverified:
        raise ValueError(
            f"{len(unverified):,} of {len(ordered):,} traces have no verdict, the first {unverified[0]!r}. Verify them "
            "before they are selected: every rule of keep asks for the verdict."
        )
    for trace, following in pairwise(ordered):
        if trace.trace_id == following.trace_id:
            raise ValueError(
                f"Trace {trace.trace_id!r} was given twice (sources {trace.source!r}, {following.source!r}). Ids must "
                "be unique: leave one out, or map a problem_id or teacher that tells them apart."
            )
    return ordered


def _is_kept(trace: Trace, keep: Keep) -> bool:
    if keep == "all":
        return True
    if keep == "N_paper":
        return trace.verdict != "correct"
    return trace.verdict == ("correct" if keep == "P" else "incorrect")


def _rule(accept: Callable[[Trace], bool]) -> Gate:
    return lambda traces: [trace for trace in traces if accept(trace)]


def known_tokens(trace: Trace) -> int:
    """The trace's number of tokens. Raises ValueError where its source does not say."""
    if trace.num_tokens < 0:
        raise ValueError(
            f"Trace {trace.trace_id!r} has no token count, which min_tokens, max_tokens, num_tokens and "
            "choose=shortest or longest need. Map columns.num_tokens, or count tokens before selecting."
        )
    return trace.num_tokens


def _deduped(traces: list[Trace]) -> list[Trace]:
    unique: dict[tuple[str, str], Trace] = {}
    for trace in traces:
        text = " ".join(unicodedata.normalize("NFC", trace.completion).split())
        unique.setdefault((trace.problem_id, text), trace)
    return list(unique.values())


def _capped(traces: list[Trace], *, limit: int, choose: Choose, seed: int) -> list[Trace]:
    if limit < 1:
        raise ValueError(f"max_per_problem={limit} must be at least 1, or null for no cap.")
    by_problem: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_problem[trace.problem_id].append(trace)
    chosen = {t.trace_id for group in by_problem.values() for t in _preferred(group, choose, seed)[:limit]}
    return [trace for trace in traces if trace.trace_id in chosen]


def _preferred(group: list[Trace], choose: Choose, seed: int) -> list[Trace]:
    if choose == "first":
        return group
    if choose == "random":
        return sorted(group, key=lambda trace: _place(trace, seed))
    return sorted(group, key=known_tokens, reverse=choose == "longest")


def _place(trace: Trace, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{trace.trace_id}".encode()).digest()


def _counted(traces: list[Trace], *, num_traces: int, seed: int) -> list[Trace]:
    if not 1 <= num_traces <= len(traces):
        raise _TooFewError(f"{len(traces):,} traces are there, so the number asked for cannot be given. Ask for fewer.")
    chosen = {trace.trace_id for trace in sorted(traces, key=lambda trace: _place(trace, seed))[:num_traces]}
    return [trace for trace in traces if trace.trace_id in chosen]


def _budgeted(traces: list[Trace], *, num_tokens: int, seed: int) -> list[Trace]:
    total = sum(map(known_tokens, traces))
    if total < num_tokens:
        raise _TooFewError(f"{total:,} tokens are there, so the number asked for cannot be given. Ask for fewer.")
    chosen: set[str] = set()
    used = 0
    for trace in sorted(traces, key=lambda trace: _place(trace, seed)):
        used += known_tokens(trace)
        # To stop at the first that does not fit, rather than to look for smaller ones, keeps budgets nested and
        # does not favour short traces.
        if used > num_tokens:
            break
        chosen.add(trace.trace_id)
    return [trace for trace in traces if trace.trace_id in chosen]


def is_looping(text: str) -> bool:
    """Whether a completion ends in a loop, exact (`tail_loop_chars`) or with small changes (`repeated_frac`).

    Linear in the length of the text.

    >>> is_looping("Let me check that. " * 40)
    True
    """
    return tail_loop_chars(text) >= TAIL_MIN_CHARS or repeated_frac(text) > SHARE_LIMIT


def tail_loop_chars(text: str) -> int:
    """Length, in characters, of the longest end of the text that is one block repeated 3 times or more.

    The last repetition may be cut off. Looks at the last TAIL_CHARS characters, white space at the end left out.
    The prefix function (Knuth, Morris, Pratt) of the reversed text gives the period of every end in linear time.

    >>> tail_loop_chars("so abcabcabcab")
    11
    """
    tail = text.rstrip()[: -TAIL_CHARS - 1 : -1]
    border = [0] * len(tail)
    longest = matched = 0
    for at in range(1, len(tail)):
        while matched and tail[at] != tail[matched]:
            matched = border[matched - 1]
        matched += tail[at] == tail[matched]
        border[at] = matched
        length = at + 1
        if length >= TAIL_REPEATS * (length - matched):
            longest = length
    return longest


def repeated_frac(text: str) -> float:
    """Share of the 8-grams of words and signs in the text's end that occurred there before, in [0, 1].

    Looks at the last SHARE_WORDS words and signs; a text of fewer than SHARE_MIN_WORDS counts as 0.
    """
    words = _WORD.findall(text)[-SHARE_WORDS:]
    if len(words) < SHARE_MIN_WORDS:
        return 0.0
    ngrams = list(zip(*(words[start:] for start in range(SHARE_NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams)


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
