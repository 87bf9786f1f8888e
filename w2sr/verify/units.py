r"""Units: what stands behind a value and says how it is measured. It is ignored unless both sides have a known unit.

Two known units that differ make two answers different ("5 cm", "5 m"); none is converted. Any other word behind a
value ("5 apples", "36\pi \text{ square tiles}") names what is counted and is ignored.
"""

from __future__ import annotations

import re

_ALIASES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "dm": "dm decimeter decimeters",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms kgs",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ml": "ml mL milliliter milliliters",
    "l": "L l liter liters litre litres",
    "gal": "gal gallon gallons",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "N": "N newton newtons",
    "J": "J joule joules",
    "kJ": "kJ",
    "W": "W watt watts",
    "kW": "kW",
    "V": "V volt volts",
    "A": "A amp amps ampere amperes",
    "Pa": "Pa",
    "Hz": "Hz hertz",
    "K": "K kelvin",
    "mol": "mol mole moles",
    "ohm": "ohm ohms Ω",
    "$": "dollar dollars USD bucks",
    "cent": "cent cents ¢",
    "€": "€ euro euros EUR",
    "£": "£ GBP",
    "¥": "¥ yen",
    "₹": "₹ rupee rupees",
}
_KNOWN = {alias: unit for unit, aliases in _ALIASES.items() for alias in aliases.split()}
_MODIFIERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_ANY = "|".join(sorted((re.escape(alias) for alias in _KNOWN if alias != "in"), key=len, reverse=True))

NO_UNIT = re.compile(
    "hundred|thousand|[mbtr]+illion|dozens?|score|gross|half|halves|thirds?|quarters?|tenths?|percent|percentage|pct|"
    "plus|minus|times|over|mod|sin|cos|tan|log|exp|sqrt|factorial|squared|cubed|choose|root|inf|infty|infinity|and|or|"
    "remainder|base|than|less|more|not|no|if|for|where|when|is|are|any|all|undefined",
    re.IGNORECASE,
)
"""Words behind a number that change its value or make a statement: no units."""

_POWER = r"(?:\^\{?(-?[0-9])\}?)?"
_GROUP = re.compile(rf"[*/]?(?:\\cdot ?)?\\text\{{([^{{}}]*)\}}{_POWER}\Z")
_FACTORS = rf"(?:{_ANY})(?:\^\{{-?[0-9]\}})?(?:[/* ](?:{_ANY})(?:\^\{{-?[0-9]\}})?){{0,3}}"
_SYMBOLS = re.compile(rf"(?:(?<=[0-9}}A-Za-z)]) |(?<=[}})]))({_FACTORS})\.?\Z")
_WORDS = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|\\frac\{[0-9]+\}\{[0-9]+\})) ?"
    r"([A-Za-z]{2,}(?:[ ./-][A-Za-z]+){0,5}\.?)(?:\^\{[23]\})?\Z"
)
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_FACTOR = re.compile(r"([*/ .]*)([A-Za-zΩ€£¥₹¢]+)(?:\^\{?(-?[0-9])\}?|([²³]))?")
_SHORT = {"of", "a", "in", "pm", "am"}
MAX_UNIT_GROUPS = 4


def split_unit(text: str) -> tuple[str, str]:
    r"""The value and its unit ("" without one), from canonical text.

    >>> split_unit(r"36\pi\text{cm}^{3}"), split_unit("12 miles per hour"), split_unit("5 million"), split_unit("x")
    (('36\\pi', 'cm^3'), ('12', 'mi h^-1'), ('5 million', ''), ('x', ''))
    """
    value, words = text, ""
    for _ in range(MAX_UNIT_GROUPS):
        group = _GROUP.search(value)
        if group is None or group.start() == 0 or any(NO_UNIT.fullmatch(word) for word in _letters(group[1])):
            break
        slash = "/" if group.group().startswith("/") else " "
        words = f"{slash}{group[1]}{'^' + group[2] if group[2] else ''}{words}"
        value = value[: group.start()].rstrip()
    if words:
        return value, unit_name(words)
    if (measure := _WORDS.match(text)) is not None and _is_unit(measure[2]):
        return measure[1], unit_name(text[measure.end(1) :])
    symbols = _SYMBOLS.search(text)
    if symbols is not None and not _VARIABLE.search(text, 0, symbols.start()):
        return text[: symbols.start()].rstrip(), unit_name(symbols[1])
    return text, ""


def _letters(words: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", words)


def _is_unit(words: str) -> bool:
    """Whether the words behind a number can be a unit or a counted thing, not a scale ("million") and not algebra."""
    parts = _letters(words)
    return (len(parts[0]) >= 3 or parts[0] in _KNOWN or parts[0] in _SHORT) and not any(map(NO_UNIT.fullmatch, parts))


def unit_name(words: str) -> str:
    """One name for a known unit and its spellings; "?" for words that are no known unit.

    >>> unit_name("square centimeters"), unit_name("m/s^2"), unit_name("apples")
    ('cm^2', 'm s^-2', '?')
    """
    powers: dict[str, int] = {}
    sign, factor = 1, 1
    for operator, word, power, raised in _FACTOR.findall(
        words.strip(" .").replace(" per ", "/").replace("mph", "mi/h")
    ):
        sign = -1 if "/" in operator else sign
        if word in _MODIFIERS:
            factor = _MODIFIERS[word]
            continue
        if word not in _KNOWN:
            return "?"
        exponent = int(power) if power else {"²": 2, "³": 3}.get(raised, factor)
        name = _KNOWN[word]
        powers[name] = powers.get(name, 0) + sign * exponent
        factor = 1
    return (
        " ".join(
            name if power == 1 else f"{name}^{power}"
            for name, power in sorted(powers.items(), key=lambda item: -item[1])
        )
        or "?"
    )


def units_differ(first: str, second: str) -> bool:
    """Whether both are known units, and different ones."""
    return first != second and "?" not in (first, second) and bool(first) and bool(second)
