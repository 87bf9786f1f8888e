"""Forms in which others keep a problem and its completion in one row: Alpaca columns and lists of chat messages.

A format names the columns that it reads; `columns` renames them (`columns: {messages: chat}`) and maps every other
field of a trace. The student's chat has one turn of its own making, so a row must hold exactly one exchange:

- system turns and `system` columns are left out: they are the teacher's prompt, and the student gets its own;
- a second exchange, a tool call, or a reasoning beside the content is refused, because training on the rest would teach
  an answer without what led to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from w2sr.rows import as_prose

Cells = Mapping[str, object]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The names under which turns go, and what they mean here."""

NOT_IN_CONTENT = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "refusal")
"""Keys of a message that hold what the assistant wrote outside of its content."""


class Format(NamedTuple):
    """How one row is read.

    `parts` are its columns, `optional` those that may be absent, `defaults` columns of other fields that the form has
    by itself, and `exchange` turns the parts into (problem, completion) or raises ValueError with the reason.
    """

    parts: tuple[str, ...]
    optional: tuple[str, ...]
    defaults: Mapping[str, str]
    exchange: Callable[[Cells], tuple[str, str]]


def alpaca_exchange(cells: Cells) -> tuple[str, str]:
    r"""Instruction, and on a line of its own the input where there is one; the output.

    >>> alpaca_exchange({"instruction": "Add.", "input": "1 + 1", "output": "2"})
    ('Add.\n1 + 1', '2')
    """
    if cells.get("history"):
        raise ValueError("history holds earlier turns; a trace is one exchange")
    texts = {}
    for part in ("instruction", "input", "output"):
        value = cells.get(part)
        if value is None and part != "input":
            raise ValueError(f"{part} is null or absent")
        texts[part] = _named_text(part, "" if value is None else value)
    problem = "\n".join(text for text in (texts["instruction"], texts["input"]) if text.strip())
    return problem, texts["output"]


def sharegpt_exchange(cells: Cells) -> tuple[str, str]:
    """The one exchange of `conversations: [{from, value}, ...]`.

    >>> sharegpt_exchange({"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2"}]})
    ('1?', '2')
    """
    return _exchange("conversations", cells.get("conversations"), "from", "value")


def openai_exchange(cells: Cells) -> tuple[str, str]:
    """The one exchange of `messages: [{role, content}, ...]`; a content may be a list of text parts.

    >>> openai_exchange({"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]})
    ('1?', '2')
    """
    return _exchange("messages", cells.get("messages"), "role", "content")


def _exchange(name: str, turns: object, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"{name} is {turns!r:.60}, not a list of {{{role_key}, {text_key}}}")
    said = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise ValueError(f"turn {number} of {name} is {turn!r:.60}, not {{{role_key}, {text_key}}}")
        role = turn[role_key]
        if role not in ROLES:
            raise ValueError(f"turn {number} of {name} is by {role!r}; known are {', '.join(ROLES)}")
        beside = [key for key in NOT_IN_CONTENT if turn.get(key)]
        if beside:
            raise ValueError(
                f"turn {number} of {name} has {beside[0]} beside its {text_key}; a trace is one text, so write the "
                f"reasoning into {text_key} as <think>...</think>, or leave the row out"
            )
        if ROLES[role] != "system":
            said.append((ROLES[role], _named_text(f"turn {number} of {name}", _joined(turn[text_key]))))
    if [role for role, _ in said] != ["user", "assistant"]:
        raise ValueError(
            f"{name} has the turns {', '.join(role for role, _ in said) or 'none'}; a trace is one exchange, user and "
            "then assistant"
        )
    return said[0][1], said[1][1]


def _joined(content: object) -> object:
    """The text of OpenAI's list of parts; anything else as it is."""
    if not isinstance(content, (list, tuple)):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a content has the part {part!r:.60}, which is not text")
    return "".join(part["text"] for part in content)


def _named_text(what: str, value: object) -> str:
    try:
        return as_prose(value)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from error


FORMATS: dict[str, Format] = {
    "alpaca": Format(
        parts=("instruction", "input", "output", "history"),
        optional=("input", "history"),
        defaults={"reference_answer": "gt_answer"},
        exchange=alpaca_exchange,
    ),
    "sharegpt": Format(("conversations",), (), {}, sharegpt_exchange),
    "openai": Format(("messages",), (), {}, openai_exchange),
}
"""Beside `columns`, in which problem and completion have a column each."""
