r"""A problem as words that carry meaning: what is left of a text without layout and without empty words.

Two spellings of a problem have the same words: `$\dfrac12$` and `\( \frac{1}{2} \)`, `1,000` and `1000`, `x²` and
`x^{2}`, "Find x." and "What is the value of x?". Numbers, operators, relations, brackets, primes and names stay, so
problems that differ in meaning have different words. Left out: synonyms, translations, numbers in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from w2sr.normal_text import fold

EMPTY = frozenset(
    "the an is are be was were what find compute calculate determine evaluate then let if and such value of please "
    "given give there".split()
)
"""Words without which a problem asks for the same: articles, forms of "to be", and ways to say "find"."""

_SIGNS = {"−": "-", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "’": "'", "‘": "'", "′": "'", "″": "''"}
_SIGNS |= {"“": '"', "”": '"', "∕": "/", "⁄": "/", "\u200b": "", "\u2060": "", "\ufeff": "", "\u00ad": ""}
_SIGNS |= {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "°": r"^\circ "}
_SIGNS |= {"π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty "}
_SIGN_TABLE = str.maketrans(_SIGNS)
_SPELLED = {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom"}
_SPELLED |= {r"\le": r"\leq", r"\ge": r"\geq", r"\ne": r"\neq", r"\leqslant": r"\leq", r"\geqslant": r"\geq"}
_SPELLED |= {r"\to": r"\rightarrow", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\mid": "|", r"\%": "%"}
_SPELLED |= {r"\{": "{", r"\}": "}", r"\ast": "*", r"\lbrace": "{", r"\rbrace": "}", r"\lbrack": "[", r"\rbrack": "]"}

_LAYOUT: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\\\|<\|\w+\|>", " \n "),  # a row of a formula, a mark of a chat template
        (r"\\tag\{[^{}]*\}", " "),
        (r"\\[\])]\s*|\$\$", " \n "),  # where a display ends, a sentence may
        (r"\\[\[(]|\\?\$", " "),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox|boxed)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split|center)\*?\}", " \n "),
        (r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|rm|bf|it|q?quad)(?![a-zA-Z])", " "),
        (r"\\(?:dots[bcm]?|[lc]dots)(?![a-zA-Z])", "..."),
        (r"(\d),(?:\\!|\{\})(?=\d{3})|(\d)\{,\}(?=\d{3})", r"\1\2,"),
        (r"\\[,;:!> ]|~|_{2,}|\*\*", " "),
        (r"\\([dtc]?frac|[dt]?binom)\s*(\d)\s*(\d)", r"\\\1 \2 \3"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"(?<=[a-zA-Z0-9])\s?-(?=[a-zA-Z]{3})", " "),  # "two-digit", "$n$-gon"
        (r"(?<![a-zA-Z])([a-zA-Z])[ ](?=[a-zA-Z](?![a-zA-Z]))", r"\1"),  # "2 x y" as some converters write it
    )
)
_THOUSANDS = re.compile(r"(?<![\d.,(\[])\d{1,3}(?:,\d{3})+(?!,?\d)")
_WORD = re.compile(
    r"""\\[a-zA-Z]+|\\[{}|%]             # a command
    |(?<![^\W\d_])[^\W\d_]'+(?![^\W\d_])  # f'
    |[^\W\d_]+
    |\d+(?:\.\d+)?|(?<!\d)\.\d+
    |(?<=[\d)\]}])!|(?<=\b[a-zA-Z])!      # a factorial
    |(?<=\d)\s?:(?=\s?\d)                 # a ratio
    |[^\w\s.,;:?!'"`\\&\#]|_""",
    re.VERBOSE,
)
_BREAK = re.compile(r"[.?!:;\n]|(?:^|\s)[A-Z]")
_CAPITAL = re.compile(r"[A-Z](?:[a-z]|\s)")
_OPTION = re.compile(r"^\(?([A-Z])[).] ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a problem.

    Attributes:
        words: as they are compared, in order.
        breaks: whether a sentence can end before words[i]; one more for the end. A problem that stands in another one
            begins and ends at a break: "2 + 2" does not stand in "2 + 2 + 3".
    """

    words: tuple[str, ...]
    breaks: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.words)

    def ngrams(self, length: int) -> set[tuple[str, ...]]:
        """The runs of `length` words; of a shorter problem the one run of all its words."""
        return {self.words[at : at + length] for at in range(max(1, len(self) - length + 1))} - {()}


def words_of(problem: str) -> Words:
    r"""The words of a problem.

    >>> words_of(r"Find $\dfrac12 + x^{2}$, please.").words
    ('\\frac', '1', '2', '+', 'x', '^', '2')
    """
    text = fold(problem).translate(_SIGN_TABLE)
    for pattern, by in _LAYOUT:
        text = pattern.sub(by, text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    found: list[tuple[str, int, int]] = []
    opened: list[int] = []
    for match in _WORD.finditer(text):
        word = match.group()
        if word == "{":
            opened.append(len(found))
        elif word == "}" and opened and len(found) - opened[-1] <= 2:
            del found[opened.pop()]  # braces round one word say nothing
            continue
        elif word == "}" and opened:
            opened.pop()
        word = _SPELLED.get(word, word).casefold().strip()
        word = f"0{word}" if word[0] == "." else word
        if word not in EMPTY:
            found.append((word, *match.span()))
    words = tuple(word for word, _, _ in found)
    if not found:
        return Words((), (True,))
    spans = [(end, start) for (_, _, end), (_, start, _) in pairwise(found)]
    inner = [bool(_BREAK.search(text[end:start]) or _CAPITAL.match(text[start : start + 2])) for end, start in spans]
    return Words(words, (True, *inner, True))


def with_sorted_options(problem: str) -> str | None:
    r"""The problem with its lettered options sorted and without letters; None for a problem without options.

    Files of one benchmark shuffle the options differently.

    >>> with_sorted_options("2 + 2?\nA) 5\nB) 4") == with_sorted_options("2 + 2?\n(A) 4\n(B) 5")
    True
    """
    marks = list(_OPTION.finditer(problem))
    if len(marks) < 2 or [mark[1] for mark in marks] != [chr(ord("A") + at) for at in range(len(marks))]:
        return None
    end = marks[-1].end() + len(problem[marks[-1].end() :].partition("\n")[0])  # the last option is one line
    ends = [*(mark.start() for mark in marks[1:]), end]
    options = sorted(problem[mark.end() : at].strip() for mark, at in zip(marks, ends, strict=True))
    return "\n".join([problem[: marks[0].start()], *options, problem[end:]])
