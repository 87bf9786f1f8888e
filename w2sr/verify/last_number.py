r"""The last number of a text: with its sign, separators, decimals, power, fraction, currency sign and percent sign."""

from __future__ import annotations

import re

from w2sr.verify.phrases import Found

_SEPARATOR = r"(?:,(?:\\!)?|\{,\}|\\[,!]|[\u00a0\u2009\u202f])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_POWER = r"(?:(?:\^|\*\*)(?:\{[-+]?[0-9]+\}|[-+]?[0-9]+)|⁻?[⁰¹²³⁴-⁹]+)"
_SCIENTIFIC = rf"(?:[eE][-+]?[0-9]{{1,3}}(?![0-9A-Za-z])|\s?(?:×|\\times|\\cdot|[*x·])\s?10{_POWER})"
_VULGAR = "[¼-¾⅐-⅞]"
# An index (a_1) and the exponent of a letter or unit (cm^2) are no numbers.
_FREE = r"(?<![A-Za-z_0-9.^])(?<!\^-)(?<![\^_]\{)(?<![\^_]\{-)(?<!\w\*\*)(?<!\w\*\*-)"
_NUMBER = re.compile(
    r"(?=[0-9.$€£¥₹\\¼-¾⅐-⅞–+-])"  # only for speed
    r"(?P<sign>(?<![\w)\]}.^–-])(?<!\^\{)(?<!\w\*\*)[-–+]\s?(?=[0-9.$€£¥₹\\¼-¾⅐-⅞]))?"
    r"(?:(?:\\?\$|[€£¥₹])\s?)?"
    rf"(?:\\[dtc]?frac(?:\{{-?(?:{_DIGITS})\}}\{{(?:{_DIGITS})\}}|\s?[0-9]\s?[0-9](?![0-9]))|{_VULGAR}"
    rf"|{_FREE}0[xX][0-9a-fA-F]+(?![0-9A-Za-z])"
    rf"|{_FREE}(?:{_DIGITS})(?:{_SCIENTIFIC}|{_POWER})?(?:\s?/\s?[0-9]+(?:{_POWER})?(?![0-9]|\.[0-9]))?)"
    r"(?:\s?\\?%)?"
)
_SPACED = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3})")
_WHOLE = re.compile(r"(?:[-–+]\s?)?(?:(?:\\?\$|[€£¥₹])\s?)?[0-9]+")
_PART = re.compile(
    rf"(?:([0-9]+)/([0-9]+)|\\[dtc]?frac\{{([0-9]+)\}}\{{([0-9]+)\}}|\\[dtc]?frac([0-9])([0-9])|{_VULGAR})(?:\s?\\?%)?"
)
_ORDINAL = re.compile(r"(?:\^\{?\s?)?(?:\\(?:text|mathrm)\{)?(?:st|nd|rd|th)(?![A-Za-z])")
_BEFORE_SIGN = "=(,:;[{<>≈|*/+-–$\"'“‘`"
"""A sign with a space behind it is one after these; after anything else it is a bullet, a dash or a subtraction."""


def last_number(text: str) -> Found | None:
    r"""The last number with its sign, thousands separators, decimals, power, percent sign or denominator.

    A minus or en dash counts as a sign only where no operand stands before it (`3–5` and `10 - 5` end with 5), the
    period that ends a sentence is not read, and an ordinal ("on the 3rd day") counts only where no other number stands.

    >>> last_number("16 - 3 = 13, so she makes $1,026.50.")
    Found(answer='$1,026.50', span=(26, 35))
    >>> [last_number(text).answer for text in ("2.5e3 on the 3rd day", "it is –5", "2 1/2 cm^2", "10^5")]
    ['2.5e3', '-5', '2 1/2', '10^5']
    """
    before, found, ordinal = None, None, None
    for match in _NUMBER.finditer(text):
        if match.group().isdecimal() and _ORDINAL.match(text, match.end()):
            ordinal = match
        else:
            before, found = found, match
    found = found or ordinal
    if found is None:
        return None
    begin = _begin(text, found)
    if before is not None and _is_mixed(text, before, begin, found.end()):
        begin = _begin(text, before)
    answer = _SPACED.sub(",", text[begin : found.end()].strip().replace("–", "-"))
    return Found(re.sub(r"^([-+])\s", r"\1", answer), (begin, found.end()))


def _begin(text: str, number: re.Match[str]) -> int:
    """Where a number begins: with its sign, if that is one, but not with the dollar sign of a formula."""
    sign = number["sign"]
    if not sign:
        is_formula = number.group()[0] == "$" and text.startswith("$", number.end())
        return number.start() + is_formula
    before = text[max(0, number.start() - 8) : number.start()].rstrip(" \t")
    if len(sign) > 1:
        is_sign = before.endswith(tuple(_BEFORE_SIGN))
    else:
        is_sign = number.start() == 0 or not text[number.start() - 1].isspace() or not re.search(r"[0-9)\]}]$", before)
    return number.start() if is_sign else number.end("sign")


def _is_mixed(text: str, whole: re.Match[str], begin: int, end: int) -> bool:
    """Whether an integer and a proper fraction behind it are one number, such as 2 1/2."""
    part = _PART.fullmatch(text, begin, end)
    between = text[whole.end() : begin]
    if part is None or between not in ("", " ") or not _WHOLE.fullmatch(whole.group()):
        return False
    digits = [int(group) for group in part.groups() if group]
    return (between == " " or not part.group(1)) and (not digits or 0 < digits[0] < digits[1])
