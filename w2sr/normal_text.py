"""One spelling for characters that mean the same, and different ones for those that do not.

Unicode's NFKC reads `x²` as `x2`, `2½` as `21⁄2` and `①` as `1`: an exponent becomes a digit. Here superscripts,
subscripts and fractions keep their meaning, in LaTeX's spelling, and circled digits stay what they are. All other
compatibility characters (full-width and styled letters, ligatures, no-break spaces) are folded as by NFKC.
"""

from __future__ import annotations

import unicodedata

_RAISED = {"<super>": "^", "<sub>": "_"}


def fold(text: str) -> str:
    """The text with compatibility characters folded, as far as they keep their meaning.

    >>> fold("x² + y₁₂ = 2½"), fold("5 ㎡"), fold("ｘ＝１２"), fold("①")
    ('x^2 + y_{12} = 2 1/2', '5 m^2', 'x=12', '①')
    """
    if text.isascii():
        return text
    parts: list[str] = []
    open_tag, raised = "", ""  # a run of raised or lowered characters: ⁻¹⁰ is one exponent
    for character in unicodedata.normalize("NFD", text) + "\n":
        tag, folded = _folded(character)
        if tag != open_tag and raised:
            parts.append(_RAISED[open_tag] + (raised if len(raised) == 1 else f"{{{raised}}}"))
            raised = ""
        open_tag = tag if tag in _RAISED else ""
        if open_tag:
            raised += folded
        elif tag == "<fraction>" and parts and parts[-1][-1:].isalnum():
            parts.append(f" {folded}")
        else:
            parts.append(folded)
    return unicodedata.normalize("NFC", "".join(parts)[:-1])


def _folded(character: str) -> tuple[str, str]:
    """The tag of a character's decomposition ("" without one), and the text that stands for it."""
    tag, *codes = unicodedata.decomposition(character).split() or [""]
    if not tag.startswith("<") or tag == "<circle>":
        return "", character
    if tag == "<fraction>":
        return tag, unicodedata.normalize("NFKC", character).replace("⁄", "/")
    if tag in _RAISED:
        return tag, unicodedata.normalize("NFKC", character).replace("−", "-")
    return "", "".join(fold(chr(int(code, 16))) for code in codes)
