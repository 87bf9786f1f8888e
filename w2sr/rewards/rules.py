"""Rewards of ours. Each is a pure function of one rollout, linear in the length of its completion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from w2sr.types import Rollout
from w2sr.verify import extract, parse_rules


@dataclass(frozen=True)
class Correct:
    """The verifier's verdict as a number.

    `wrong` is also for an answer that could not be graded in time, `no_answer` for a completion without one.

    >>> from w2sr.rewards.examples import rollout
    >>> reward = Correct(right=1.0, wrong=-0.5, no_answer=-1.0)
    >>> [reward(rollout(label=label)) for label in ("correct", "incorrect", "timeout", "no_answer")]
    [1.0, -0.5, -0.5, -1.0]
    """

    right: float = 1.0
    wrong: float = 0.0
    no_answer: float = 0.0

    def __call__(self, rollout: Rollout) -> float:
        if rollout.verdict.is_correct:
            return self.right
        return self.no_answer if rollout.verdict.label == "no_answer" else self.wrong


@dataclass(frozen=True)
class Format:
    r"""1 where the completion ended by itself and gives an answer in one of the demanded forms, right or wrong; else 0.

    `rules` are extraction rules (see `w2sr.verify`): `boxed`, `answer_tag` for `<answer>…</answer>`, `after:TEXT`. They
    are read here, whatever rules the verifier has: `data` may be lenient and take the last number, while this reward
    asks for the box. They take time linear in the completion; patterns of regular expressions need not, and are no
    option.

    >>> from w2sr.rewards.examples import rollout
    >>> in_a_box = Format(rules=("boxed",))
    >>> in_a_box(rollout(r"so \boxed{3}")), in_a_box(rollout("so 3")), in_a_box(rollout(r"\boxed{3}", finish="length"))
    (1.0, 0.0, 0.0)
    """

    rules: tuple[str, ...] = ("boxed",)

    def __post_init__(self) -> None:
        parse_rules(self.rules)

    def __call__(self, rollout: Rollout) -> float:
        found = extract(rollout.completion.text, parse_rules(self.rules))
        return float(found.answer is not None and rollout.completion.finish_reason == "stop")


@dataclass(frozen=True)
class Overlong:
    """Soft punishment of completions that come near the token limit: 0 down to -`penalty` over the last tokens.

        -penalty · clip((len - (max_tokens - buffer_tokens)) / buffer_tokens, 0, 1),   len in completion tokens

    Source: DAPO, arXiv 2503.14476, eq. 13, where 4,096 of 20,480 tokens are the buffer.

    >>> from w2sr.rewards.examples import rollout
    >>> reward = Overlong(max_tokens=100, buffer_tokens=20)
    >>> [reward(rollout(num_tokens=num)) for num in (80, 85, 100, 140)]
    [0.0, -0.25, -1.0, -1.0]
    """

    max_tokens: int
    buffer_tokens: int
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer_tokens <= self.max_tokens or not 0 <= self.penalty < math.inf:
            raise ValueError(
                f"Overlong needs 0 < buffer_tokens <= max_tokens and penalty >= 0; it has buffer_tokens="
                f"{self.buffer_tokens}, max_tokens={self.max_tokens}, penalty={self.penalty}."
            )

    def __call__(self, rollout: Rollout) -> float:
        over = len(rollout.completion.token_ids) - (self.max_tokens - self.buffer_tokens)
        return 0.0 if over <= 0 else -self.penalty * min(over / self.buffer_tokens, 1.0)


@dataclass(frozen=True)
class Repetition:
    """Punishment of repeated words: -`penalty` times the share of n-grams that stood in the completion before.

        -penalty · (1 - distinct n-grams / n-grams),   of lower-case words between white space

    A completion of fewer than `ngram` words gets 0. Source: arXiv 2502.03373, appendix C.2, as in Open-R1 (n 3,
    penalty 1).

    >>> from w2sr.rewards.examples import rollout
    >>> Repetition(ngram=2)(rollout("no no no no no")), Repetition(ngram=2)(rollout("one two three"))
    (-0.75, 0.0)
    """

    ngram: int = 3
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.ngram < 1 or not 0 <= self.penalty < math.inf:
            raise ValueError(
                f"Repetition needs ngram >= 1 and penalty >= 0; it has ngram={self.ngram}, penalty={self.penalty}."
            )

    def __call__(self, rollout: Rollout) -> float:
        words = rollout.completion.text.lower().split()
        ngrams = list(zip(*(words[start:] for start in range(self.ngram)), strict=False))
        num_repeated = len(ngrams) - len(set(ngrams))
        return -self.penalty * num_repeated / len(ngrams) if num_repeated else 0.0


@dataclass(frozen=True)
class Length:
    """The verdict and the length in one number: short right answers beat long ones, long wrong ones beat short ones.

        long + ½ (short - long) (1 + cos(π · min(len / max_tokens, 1))),   len in completion tokens

    from `right_short` to `right_long` where the answer is right, else from `wrong_short` to `wrong_long`: a wrong
    answer is worth more thought. It stands instead of `Correct`. Source: the cosine reward of arXiv 2502.03373 with
    Open-R1's values; its extra punishment at the limit is `Overlong` here.

    >>> from w2sr.rewards.examples import rollout
    >>> reward = Length(max_tokens=100)
    >>> [reward(rollout(num_tokens=num, label="correct")) for num in (0, 50, 100)]
    [1.0, 0.75, 0.5]
    >>> [reward(rollout(num_tokens=num, label="incorrect")) for num in (0, 50, 100)]
    [-1.0, -0.75, -0.5]
    """

    max_tokens: int
    right_short: float = 1.0
    right_long: float = 0.5
    wrong_short: float = -1.0
    wrong_long: float = -0.5

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"Length needs max_tokens >= 1; it has {self.max_tokens}.")

    def __call__(self, rollout: Rollout) -> float:
        right = rollout.verdict.is_correct
        short, long = (self.right_short, self.right_long) if right else (self.wrong_short, self.wrong_long)
        progress = min(len(rollout.completion.token_ids) / self.max_tokens, 1.0)
        return long + 0.5 * (short - long) * (1 + math.cos(math.pi * progress))
