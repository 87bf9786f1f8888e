"""The nouns of w2sr: what flows between the rooms. Imports nothing of ours.

Alignment, stated once: `labels[t]` is the token that follows `input_ids[t]` in the same segment, or `IGNORE_INDEX`
where that token carries no loss (prompt, end of segment, padding). Every per-token array is indexed like `labels`.

Shape suffixes of the numeric rooms: T packed tokens, S segments, V vocabulary, N problems, G group size, K samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORE_INDEX = -100
"""A label that carries no loss (the value that torch's cross entropy ignores by default)."""

FinishReason = Literal["stop", "length", "unknown"]
"""Why a completion ended: it emitted a stop token, it met the token limit, or its source did not say."""

LABEL_FREE = "label-free:"
"""How the grader of a verdict begins that no reference answer gave: a vote's, say."""

VerdictLabel = Literal["correct", "incorrect", "no_answer", "timeout"]
Kind = Literal["math", "exact", "choice", "yes_no", "number", "logic"]
"""How an answer is compared with a reference: see `w2sr.verify`."""

Keep = Literal["P", "N", "N_paper", "all"]
RowFormat = Literal["columns", "alpaca", "sharegpt", "openai"]
"""How a row of foreign traces holds problem and completion: in columns of their own, or in a form that others use."""


class Problem(NamedTuple):
    """A task with its gold answer. A NamedTuple, because batches of problems pass through Lightning.

    `problem_id` is unique within a run; `source` names the benchmark or data set; `stratum` is a difficulty label of
    the source (a level, a number of steps) or "".
    """

    problem_id: str
    source: str
    problem: str
    reference_answer: str
    stratum: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says of one completion against one reference answer.

    `answer` is the extracted answer (None where nothing could be extracted), `rule` the extraction rule that found it
    ("" where none did), `reason` one short sentence for a person, `grader` and `grader_version` who decided.
    """

    label: VerdictLabel
    answer: str | None
    rule: str
    reason: str
    grader: str
    grader_version: str

    @property
    def is_correct(self) -> bool:
        return self.label == "correct"


@dataclass(frozen=True, slots=True)
class Trace:
    """A teacher's stored completion with its verdict and its provenance. One row of the trace store.

    Where a foreign file does not say, a field keeps its default: "" for text, -1 for numbers, "unknown" for the finish
    reason. `verdict` is "" until the trace was verified. `sampling` is a JSON object as text
    (temperature, top_p, max_new_tokens, seed, stop_text). `seconds` is the trace's share of the wall time of
    generation: over the traces of a run it sums to that time. `no_loss_spans` is JSON as text, [[start, end], ...]:
    characters of the completion that teach nothing, such as the results of tools. `corruption` is a JSON object as
    text: what was changed in the completion, and how (see `w2sr.corruption`); "" for nothing.
    """

    problem_id: str
    source: str
    problem: str
    reference_answer: str
    teacher: str
    completion: str
    finish_reason: FinishReason = "unknown"
    sample_index: int = 0
    num_tokens: int = -1
    answer: str | None = None
    answer_rule: str = ""
    verdict: VerdictLabel | Literal[""] = ""
    verdict_reason: str = ""
    grader: str = ""
    grader_version: str = ""
    sampling: str = ""
    seed: int = -1
    template_hash: str = ""
    engine: str = ""
    seconds: float = -1.0
    no_loss_spans: str = ""
    corruption: str = ""

    @property
    def trace_id(self) -> str:
        """Names the trace in messages and in plans: 'gsm8k/412@teacher#3'."""
        return f"{self.problem_id}@{self.teacher}#{self.sample_index}"

    def judged(self, verdict: Verdict) -> Trace:
        """The trace with what a verifier says of it."""
        return replace(
            self,
            answer=verdict.answer,
            answer_rule=verdict.rule,
            verdict=verdict.label,
            verdict_reason=verdict.reason,
            grader=verdict.grader,
            grader_version=verdict.grader_version,
        )

    @property
    def is_label_free(self) -> bool:
        """Whether the verdict was given without a reference answer."""
        return self.grader.startswith(LABEL_FREE)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One tokenised document: prompt and completion with the stop token, ready to be packed.

    `input_ids` [L] and `labels` [L] are int64 and aligned as stated at the top of this file, so `labels[-1]` is always
    IGNORE_INDEX: nothing follows the last token.
    """

    segment_id: str
    input_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_loss_tokens(self) -> int:
        return int((self.labels != IGNORE_INDEX).sum())


class PackedBatch(NamedTuple):
    """One packed row of T tokens. A NamedTuple, because Lightning moves those between devices.

    `input_ids`, `labels`, `position_ids`: [T] int64. `cu_seqlens`: [S + 1] int32, the one truth for boundaries;
    `position_ids` and `max_seqlen` are computed from it. Padding, where there is any, is a segment of its own.

    Segments may share a first part, which then stands in the row once (see `w2sr.groups.pack_sharing`). `cu_seqlens`
    and `max_seqlen` bound the segments as if each were written out, X tokens in all; `source` [X] int64 is the row's
    token that stands there, and `place` [T] int64 one place of each of the row's tokens. None: nothing is shared.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    source: torch.Tensor | None = None
    place: torch.Tensor | None = None


class StepBatch(NamedTuple):
    """One whole optimizer step on one rank: its rows, each a micro-step.

    `num_loss_tokens` is the denominator of the whole step, over all ranks, known before the first backward. `lengths`
    are the tokens of this rank's segments, `trace_ids` their names, and `capacity` the tokens that its rows could hold.
    """

    rows: list[PackedBatch]
    num_loss_tokens: int
    lengths: tuple[int, ...]
    trace_ids: tuple[str, ...]
    capacity: int


class ProblemBatch(NamedTuple):
    """Problems to sample from, and 1.0 for each real one or 0.0 for one that only keeps ranks in step."""

    problems: tuple[Problem, ...]
    weights: tuple[float, ...]


class Round(NamedTuple):
    """The name of one round of reinforcement learning, a batch of its loader. The module takes the problems itself."""

    number: int


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled. `temperature` 0 is greedy; `top_p` keeps the smallest set of that probability.

    `seed` is one part of what a sampled token's noise depends on: (seed, problem id, sample index, position). A
    completion ends with a stop token, or behind one of the texts `stop_text`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    stop_text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1; it has "
                f"temperature={self.temperature}, top_p={self.top_p}, max_new_tokens={self.max_new_tokens}."
            )


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from its reference: max(`absolute`, `relative` · |reference|). 0 and 0: equal."""

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.absolute < float("inf") and 0 <= self.relative < 1):
            raise ValueError(
                f"tolerance needs absolute >= 0 and 0 <= relative < 1; it has absolute={self.absolute}, "
                f"relative={self.relative}."
            )


WhereValue = str | int | float | bool | None
"""A value that `DataFile.where` compares a cell with."""


@dataclass(frozen=True)
class DataFile:
    """Where rows come from, and how they are read and graded.

    Attributes:
        path: a file (.jsonl, .json, .csv, .tsv, .parquet, each also with .gz), a trace store, a directory of
            `save_to_disk`, or a hub name such as `openai/gsm8k`.
        columns: our field → the file's column (`=text` for a constant). None where the file uses our field names.
        format: of traces: `columns` as they are mapped; `alpaca` with instruction, input and output; `sharegpt` with
            conversations of {from, value}; `openai` with messages of {role, content}. See `w2sr.traces.formats`.
        stop_text: of traces: texts at which the teacher should have stopped (`</s>`); the completion ends before them.
        rules: extraction rules, tried in order, for completions that answer these problems.
        kind: how an extracted answer is compared: `math`; `exact` text; `choice` of an option; `yes_no`; `number` with
            a tolerance; `logic` (who is what, or what comes before what).
        tolerance: of `kind: number`.
        where: a filter of rows: column → the value that it must have, or a list of values.
        split: split of a hub data set, or of a saved one that has several; None is `test`.
        config: configuration of a hub data set.
        limit: use only the first rows.
        choices: the rows hold multiple-choice options in columns of their own; they are shuffled. Needs `kind: choice`.
        reference_rule: extraction rule for reference answers that stand inside a solution (`hash`, `boxed`).
    """

    path: str
    columns: dict[str, str | list[str]] | None = None
    rules: tuple[str, ...] = ("boxed",)
    kind: Kind = "math"
    split: str | None = None
    config: str | None = None
    limit: int | None = None
    choices: bool = False
    reference_rule: str | None = None
    format: RowFormat = "columns"
    stop_text: tuple[str, ...] = ()
    tolerance: Tolerance = Tolerance()
    where: dict[str, WhereValue | list[WhereValue]] | None = None


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One sample to draw: the prompt's token ids and the names that its noise is derived from.

    `num_done`: so many tokens at the end of the prompt belong to the completion already. It goes on behind them, with
    the noise of its positions, and they count towards the token limit; what is returned begins after them.

    `prompt` is the same prompt as text, and `messages` its turns as (role, content): for servers that take no token
    ids. `rollouts.sample_requests` fills all of them; engines that take token ids read only those.
    """

    problem_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    num_done: int = 0
    prompt: str = ""
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a generator returns for one request: token ids up to and including the stop token, and their text.

    `no_loss_spans`: (start, end) characters of the text that the model did not write, such as the results of tools.

    `retokenized` is True where the model's own token ids are not known: `token_ids` are then what our tokenizer makes
    of the text, good for counting, and not what was sampled.

    `logprobs`: the sampler's log-probability of each of the `token_ids`, in nats at the temperature of sampling, before
    `top_p` cuts; None where the engine was not asked for them. `policy_version` stamps the weights that wrote it.
    """

    problem_id: str
    sample_index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    no_loss_spans: tuple[tuple[int, int], ...] = ()
    retokenized: bool = False
    logprobs: tuple[float, ...] | None = None
    policy_version: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion of the policy, with its prompt and its verdict: all that a reward may look at."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The rollouts of one prompt, in the order of their sample index. Their rewards are compared with each other."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


class PolicyRow(NamedTuple):
    """One packed row of rollouts, and what the policy loss knows of each of its tokens. All [T], indexed like `labels`.

    `advantages`, `weights` and `rollout_logprobs` are float32, and 0 where a label is IGNORE_INDEX. `weights`: the
    token's share in the loss of the whole optimizer step, over all its rows and ranks, so that a row's loss is
    Σ weights · (loss of the token), and rows are summed. `rollout_logprobs`: as sampled, in nats. `segments` (int64):
    which of the row's segments a token is in. `old_logprobs`: by the policy at the start of the round; None where the
    policy is still the same, so that the ratio is 1. `ref_logprobs`: by the reference policy; None without one.
    """

    packed: PackedBatch
    advantages: torch.Tensor
    weights: torch.Tensor
    rollout_logprobs: torch.Tensor
    segments: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One evaluated sample: enough to compute every metric again, and to read what the model wrote.

    `correct` is False for a missing, failed or unfinished sample: such a sample is counted, never dropped.
    """

    problem_id: str
    source: str
    stratum: str
    sample_index: int
    completion: str
    finish_reason: FinishReason
    num_tokens: int
    answer: str | None
    reference_answer: str
    verdict: VerdictLabel
    correct: bool
