"""What can be asked of a selection: the keys of `gates` and of the portions of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast, get_args

from w2sr.types import Keep, Kind

Finish = Literal["stop", "stop_or_unknown", "any"]
Choose = Literal["first", "shortest", "longest", "random"]
TopWithin = Literal["all", "problem"]
VerdictSource = Literal["any", "reference", "label-free"]
Ensemble = Literal["union", "vote", "agreement", "best", "round_robin"]

Band = tuple[float | None, float | None]
"""Least and greatest value, both inclusive; None leaves an end open."""


@dataclass(frozen=True)
class Portion:
    """One part of a mixture. Its keys mean what they mean in `Gates`, and see only the traces of this part.

    Attributes:
        keep: verdict of this part's traces.
        min_tokens: least num_tokens, inclusive.
        max_tokens: greatest num_tokens, inclusive.
        score: score → [least, greatest], inclusive; null leaves an end open.
        top_frac: score → share of the best traces by it.
        top_within: whether that share is of all traces of this part, or of each problem's.
        max_per_problem: how many traces of a problem.
        choose: which those are.
        num_traces: exactly so many traces at random by the seed of the gates.
        num_tokens: at random as many traces as fit into so many tokens.
    """

    keep: Keep = "all"
    min_tokens: int | None = None
    max_tokens: int | None = None
    score: dict[str, Band] | None = None
    top_frac: dict[str, float] | None = None
    top_within: TopWithin = "all"
    max_per_problem: int | None = None
    choose: Choose = "first"
    num_traces: int | None = None
    num_tokens: int | None = None

    @property
    def need_tokens(self) -> bool:
        """Whether some gate asks for the traces' numbers of tokens."""
        return _need_tokens(self)

    @property
    def need_scores(self) -> set[str]:
        """Names of the scores that some gate asks for."""
        return {*(self.score or {}), *(self.top_frac or {})}


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
        choose: which those are: `first` by sample index, the teachers in an order drawn for each problem by seed;
            `shortest` or `longest` by num_tokens; or `random` by seed.
        num_traces: exactly so many traces at random, for comparison at equal counts. For one seed a smaller number is
            a subset of a larger one.
        num_tokens: at random as many traces as fit into so many tokens, for comparison at equal tokens; nested
            likewise.
        seed: of every choice by chance. A trace's place depends on the seed and its id alone.
        verdicts: `reference` wants verdicts that come from a reference answer, `label-free` those that do not.
        score: score → [least, greatest], inclusive; null leaves an end open. A trace without the score (NaN) is out.
        top_frac: score → share of the best traces by it, rounded up; several apply one after another. Ties are broken
            by seed, and traces without the score (NaN) are not counted and not kept.
        top_within: whether that share is of all traces, or of each problem's.
        match_count_of: exactly so many traces at random as the same gates keep under this verdict.
        mix: parts that are joined, each selected by itself from what the gates above left. A trace that several parts
            choose is kept once. With a mix `keep` is mostly `all`.
        ensemble: what several teachers' traces of one problem are: `union` all; `vote` those whose answer most of the
            traces gave; `agreement` those whose answer most of the teachers gave; `best` those of one teacher, with
            the highest mean score; `round_robin` those of one teacher, dealt by share. See `w2sr.selection.ensembles`.
        ensemble_score: the score of `best`.
        min_share: least share of the votes that `vote` and `agreement` want for an answer.
        teacher_shares: teacher → share of the problems, for `round_robin`; equal shares without it.
        answer_kind: how answers are compared for `vote` and `agreement` (`kind` of a data file).
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
    verdicts: VerdictSource = "any"
    score: dict[str, Band] | None = None
    top_frac: dict[str, float] | None = None
    top_within: TopWithin = "all"
    match_count_of: Keep | None = None
    mix: tuple[Portion, ...] = ()
    ensemble: Ensemble = "union"
    ensemble_score: str = "structure"
    min_share: float = 0.5
    teacher_shares: dict[str, float] | None = None
    answer_kind: Kind = "math"

    @property
    def need_tokens(self) -> bool:
        """Whether some gate asks for the traces' numbers of tokens."""
        return _need_tokens(self) or any(portion.need_tokens for portion in self.mix)

    @property
    def need_scores(self) -> set[str]:
        """Names of the scores that some gate asks for."""
        wanted = {*(self.score or {}), *(self.top_frac or {})}
        wanted |= {name for portion in self.mix for name in portion.need_scores}
        return wanted | ({self.ensemble_score} if self.ensemble == "best" else set())


def _need_tokens(asked: Portion | Gates) -> bool:
    wanted = (asked.min_tokens, asked.max_tokens, asked.num_tokens)
    by_length = asked.max_per_problem is not None and asked.choose in ("shortest", "longest")
    return by_length or any(value is not None for value in wanted)


def gates_of(values: Mapping[str, Any]) -> Gates:
    """Gates from their fields; portions of a mix may be mappings.

    Raises:
        ValueError: a value that no gate knows.
    """
    portions = tuple(part if isinstance(part, Portion) else Portion(**part) for part in values.get("mix") or ())
    gates = Gates(**{**values, "mix": portions})
    _check(gates, "")
    _check_ensemble(gates)
    for number, portion in enumerate(portions, 1):
        _check(portion, f"mix {number}: ")
    return gates


CHOICES = {
    "keep": Keep,
    "match_count_of": Keep,
    "finish": Finish,
    "choose": Choose,
    "top_within": TopWithin,
    "verdicts": VerdictSource,
    "ensemble": Ensemble,
    "answer_kind": Kind,
}


def check_choice(name: str, value: object, where: str = "") -> None:
    """Raises a ValueError unless the value is one of those that the key knows."""
    known = get_args(cast(Any, CHOICES[name]))
    if value not in known:
        raise ValueError(f"{where}{name}={value!r} must be one of {', '.join(known)}.")


def _check(asked: Portion | Gates, where: str) -> None:
    for one in fields(asked):
        value = getattr(asked, one.name)
        if one.name in CHOICES and not (value is None and one.name == "match_count_of"):
            check_choice(one.name, value, where)
    if asked.max_per_problem is not None and asked.max_per_problem < 1:
        raise ValueError(f"{where}max_per_problem={asked.max_per_problem} must be at least 1, or null for no cap.")
    for name, band in (asked.score or {}).items():
        if len(band) != 2 or (None not in band and not band[0] <= band[1]):  # type: ignore[operator]
            raise ValueError(
                f"{where}score.{name}={list(band)} must be [least, greatest]; write null for an end that is open."
            )
    for name, share in (asked.top_frac or {}).items():
        if not 0 < share <= 1:
            raise ValueError(f"{where}top_frac.{name}={share} must be a share in (0, 1].")


def _check_ensemble(gates: Gates) -> None:
    if not 0 <= gates.min_share <= 1:
        raise ValueError(f"min_share={gates.min_share} must be a share in [0, 1].")
    shares = gates.teacher_shares or {}
    if shares and gates.ensemble != "round_robin":
        raise ValueError(
            f"teacher_shares are for ensemble=round_robin; it is {gates.ensemble!r}. Set it, or remove the shares."
        )
    if any(share <= 0 for share in shares.values()):
        raise ValueError(f"teacher_shares={shares} must all be above 0. Leave out a teacher who is to have none.")
    controls = [name for name in ("match_count_of", "num_traces") if getattr(gates, name) is not None]
    if len(controls) == 2:
        raise ValueError("match_count_of and num_traces both say how many traces are kept: remove one of them.")
