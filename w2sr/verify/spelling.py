r"""One spelling for mathematical text that differs only in typography: what every comparison of kind `math` reads.

`canonical` maps Unicode, plain text, Python and LaTeX notation to one LaTeX spelling: `x²+1`, `x**2+1` and `x^2 + 1`
become `x^{2}+1`. It changes no meaning: a comma that separates thousands goes, one that separates elements stays; a
mixed number and a repeating decimal become fractions; a unit stays as `\text{…}` behind its value. Linear time.
"""

from __future__ import annotations

import re
from fractions import Fraction

from w2sr.verify.markup import plain, unwrap

_SYMBOLS = str.maketrans(
    {
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "λ": r"\lambda ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "±": r"\pm ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "×": r"\cdot ",
        "÷": "/",
        "−": "-",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "。": ".",
        "，": ",",
        "、": ",",
        "′": "'",
    }
)
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_LEVEL = "0123456789+-n"
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]"}

_COMMANDS = {  # one name a command
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "lt": "<", "geq": "ge",
    "geqslant": "ge", "gt": ">", "neq": "ne", "times": "cdot", "div": "/", "varnothing": "emptyset",
    "lbrace": "{", "rbrace": "}", "left": "", "right": "", "displaystyle": "", "big": "", "bigl": "", "bigr": "",
    "Big": "", "Bigl": "", "Bigr": "", "bf": "", "rm": "", "it": "", "bfseries": "", "quad": " ", "qquad": " ",
    "lvert": "|", "rvert": "|", "degree": "°",
}  # fmt: skip
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
_FONTS = "mathbf|mathit|mathsf|mathcal|boldsymbol|bm|boxed|fbox|textbf|textit|emph|underline"
_TEXTS = "text|textrm|textnormal|mathrm|mbox|operatorname|textsf|texttt"
_GROUP = re.compile(rf"\\({_FONTS}|{_TEXTS})\s*\{{|\\.|[{{}}]", re.DOTALL)
_PHRASE = re.compile(r"[ ,]*[A-Za-zµμΩ€£¥₹'./ ()-]*[A-Za-zΩ€£¥₹][A-Za-z'./ ²³^0-9{}\\-]*\.?")
MAX_UNIT_CHARS = 80
_VALUE_END = re.compile(r"(?:[0-9A-Za-z)}|!.\]]|\\\})\s*\Z")
_NO_UNITS = {"e", "i", "x", "y", "z", "n", "d", "and", "or", "thousand", "million", "billion", "trillion"}

_SPACES = re.compile(r"\s+")
_BLANK = re.compile(r"(?<!\\)\\[;: ]|~|\\,(?![0-9])|(?<![0-9])\\,")
_DEGREE = re.compile(r" ?(?:\^\s*\{?\s*\\circ\s*\}?|°)(?: ?(?:\\text\{ ?)?[CF](?![A-Za-z])\}?)?")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])")
_PERCENT = re.compile(r"\s*(?:\\%|\\text\{\s*per ?cent(?:age)?\s*\}|(?<=[0-9]) ?(?<![A-Za-z])per ?cent(?![A-Za-z])|%)")
_CURRENCY_BEFORE = re.compile(r"([€£¥₹])\s*(-?[0-9][0-9.,]*)")
_CURRENCY_AFTER = re.compile(r"(?<=[0-9])\s*([€£¥₹])|(?<=[0-9])\s*(USD|EUR|GBP|dollars?|euros?)(?![A-Za-z])")
_CODE_BEFORE = re.compile(r"(?<![A-Za-z])(USD|US\\?\$|EUR|GBP)\s*(?=-?[0-9.])")
_AND = re.compile(r"\s*,?\s*(?:\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_THOUSANDS = re.compile(
    r"(?<![0-9.,\\!])[1-9][0-9]{0,2}(?P<mark>\{,\}|,?\\!,?\\?!? ?|\\,|,)[0-9]{3}(?:(?P=mark)[0-9]{3})*"
    r"(?![0-9]|,[0-9])"
    r"|\\.|[()\[\]{}]|(?:\\[,!]|\{,\})"
)
_REPEATING = re.compile(r"(?<![0-9])([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*\{([0-9]+)\}(?![0-9])")
_MIXED = re.compile(
    r"(?<![0-9A-Za-z.}^_/)\]\\])(?<![0-9A-Za-z.}^_/)\]] )([0-9]{1,30})"
    r"(?: ?\\frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}| ([0-9]{1,30})/([0-9]{1,30}))"
    r"(?! ?(?:[0-9A-Za-z.{^_(/!]|\\(?!text)))"
)
_SCIENTIFIC = re.compile(r"(?<![0-9A-Za-z.])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?)0*([0-9]{1,4})(?![0-9A-Za-z.])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])")


def canonical(text: str) -> str:
    r"""One spelling for texts that differ only in typography.

    >>> canonical(r" $\left( \dfrac12 ,\ 1{,}000 \right)$. "), canonical("2½"), canonical("x²≤√5"), canonical("1e-7")
    ('(\\frac{1}{2},1000)', '\\frac{5}{2}', 'x^{2}\\le\\sqrt{5}', '1\\cdot 10^{-7}')
    """
    text = _SPACES.sub(" ", _from_unicode(unwrap(plain(text))))
    text = _from_python(text)
    text = _CODE_BEFORE.sub("", text)
    text = _COMMAND.sub(_one_command, re.sub(r"\\?\$|(?<!\\)\\[][()]", " ", text))
    text = _SPACES.sub(" ", _without_wrappers(_SPACES.sub(" ", _BLANK.sub(" ", text))))
    text = _PERCENT.sub("%", _DEGREE.sub("", text))
    text = _CURRENCY_AFTER.sub(r"\\text{\1\2}", _CURRENCY_BEFORE.sub(r"\2\\text{\1}", text))
    text = _join_thousands(_AND.sub(", ", text))
    text = _one_notation(_LOOSE_SPACE.sub("", _SPACES.sub(" ", text).strip()))
    text = _MIXED.sub(_from_mixed, _REPEATING.sub(_from_repeating, text))
    text = _SCIENTIFIC.sub(lambda m: rf"{m[1].rstrip('.')}\cdot 10^{{{m[2].strip('+')}{m[3]}}}", text)
    return _bare(text).rstrip(".,;\\ ")


def _from_unicode(text: str) -> str:
    if text.isascii():
        return text
    text = re.sub("(?<![0-9])[–—](?=[0-9.√])|[–—](?= )", "-", text)  # not a range of numbers
    for level, mark in ((_RAISED, "^"), (_LOWERED, "_")):
        table = str.maketrans(level, _LEVEL)
        runs = re.split(rf"([{level}]+)", text)
        runs[1::2] = [f"{mark}{{{run.translate(table)}}}" for run in runs[1::2]]
        text = "".join(runs)
    text = re.sub(f"[{''.join(_FRACTIONS)}]", lambda m: r"\frac{{{}}}{{{}}}".format(*_FRACTIONS[m.group()]), text)
    text = text.translate(_SYMBOLS)
    return re.sub(
        r"([√∛])\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))",
        lambda m: f"{_ROOTS[m[1]]}{{{m[2] or m[3]}}}",
        text,
    )


def _from_python(text: str) -> str:
    r"""Operators and functions of plain text as LaTeX. In text with `**`, which is Python, `log` is `\ln`."""
    is_python = "**" in text
    text = re.sub(r"\*\*\s*(?:\(([^()]*)\)|(-?[0-9A-Za-z]+))", lambda m: f"^{{{m[1] or m[2]}}}", text)
    text = re.sub(r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\s*\()", r"\\arc\1", text)
    text = re.sub(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp)(?=\s*\()", r"\\\1", text)
    text = text.replace(r"\log", r"\ln") if is_python else text
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"(?<![0-9)])!=", r"\\ne ", text)  # 5!=120 is a factorial
    return re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)


def _one_command(match: re.Match[str]) -> str:
    name = _COMMANDS[match.group(1)]
    return "\\" + name + ("" if name in "{}" else " ") if name in ("{", "}") or len(name) > 1 else name


def _without_wrappers(text: str) -> str:
    r"""Removes fonts and text groups; a phrase behind a value, which may be its unit, stays as `\text{…}`."""
    pieces: list[str] = []
    opened: list[tuple[int, str] | None] = []
    position = 0
    for token in _GROUP.finditer(text):
        pieces.append(text[position : token.start()])
        position = token.end()
        if token.group(1):
            opened.append((len(pieces), token.group(1)))
        elif token.group() != "}" or not opened:
            opened += [None] if token.group() == "{" else []
            pieces.append(token.group())
        elif (wrapper := opened.pop()) is None:
            pieces.append("}")
        else:
            begin, name = wrapper
            pieces[begin:] = [_unwrapped(name, "".join(pieces[begin:]), "".join(pieces[max(0, begin - 3) : begin]))]
    return "".join([*pieces, text[position:]])


def _unwrapped(name: str, inner: str, before: str) -> str:
    may_be_unit = len(inner) <= MAX_UNIT_CHARS and name not in _FONTS.split("|") and inner.strip() not in _NO_UNITS
    if may_be_unit and _PHRASE.fullmatch(inner) and _VALUE_END.search(before[-MAX_UNIT_CHARS:]):
        return rf"\text{{{inner.strip()}}}"
    return f" {inner} "


def _join_thousands(text: str) -> str:
    """Removes separators of thousands. Between brackets a bare comma separates elements: `(1,100)` is a pair."""
    depth = 0

    def joined(match: re.Match[str]) -> str:
        nonlocal depth
        token = match.group()
        if match["mark"] is not None:
            return token if match["mark"] == "," and depth > 0 else re.sub(r"[^0-9]", "", token)
        if token in (r"\,", r"\!", "{,}"):
            return "," if token == "{,}" else " " if token == r"\," else ""
        depth += (token in ("(", "[", r"\{")) - (token in (")", "]", r"\}"))
        return token

    whole = re.fullmatch(r"\s*\{([^{}]*)\}\s*", text)
    return _THOUSANDS.sub(joined, rf"\{{{whole[1]}\}}" if whole and "," in whole[1] else text)


def _one_notation(text: str) -> str:
    r"""`\frac12`, `\sqrt2`, `x^2` and `x_1` with braces; infinity as a command."""
    text = re.sub(r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])(?![0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?([0-9A-Za-z])\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\}) ?([0-9A-Za-z])(?![0-9])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_]) ?(-?[0-9]+|[A-Za-z])", r"\1{\2}", text)
    return _INFINITY.sub(r"\\infty ", text)


def _from_repeating(match: re.Match[str]) -> str:
    """0.1(6) = (16 - 1)/90."""
    whole, fixed, period = match.groups()
    if len(whole + fixed + period) > 100:
        return match.group()
    over = int(whole + fixed + period) - int("0" + whole + fixed)
    value = Fraction(over, 10 ** len(fixed) * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _from_mixed(match: re.Match[str]) -> str:
    whole, over, under = int(match[1]), int(match[2] or match[4]), int(match[3] or match[5])
    return rf"\frac{{{whole * under + over}}}{{{under}}}" if 0 < over < under else match.group()


def _bare(text: str) -> str:
    """Without braces round the whole text."""
    whole = re.fullmatch(r"\{([^{}]*)\}", text)
    return whole[1] if whole else text
