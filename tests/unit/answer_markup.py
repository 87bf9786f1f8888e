"""Markup that models put round an answer; `{}` is the answer."""

from __future__ import annotations

MARKUPS = [
    "{}",
    "**{}**",
    "*{}*",
    "***{}***",
    "**{}**.",
    "**{}.**",
    "`{}`",
    "```\n{}\n```",
    "```json\n{}\n```",
    "${}$",
    "$${}$$",
    r"\({}\)",
    r"\[ {} \]",
    '"{}"',
    "'{}'",
    "“{}”",
    "‘{}’",
    "«{}»",
    "「{}」",
    "``{}''",
    "<b>{}</b>",
    r"\boxed{{{}}}",
    r"\boxed{{\text{{{}}}}}",
    r"\mathbf{{{}}}",
    r"$\textbf{{{}}}$",
    "{}。",
]
