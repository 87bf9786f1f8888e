"""How a problem becomes a prompt: the paper's three templates, and the pieces that a saved one is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Template = Literal["auto", "model", "qwen-base", "qwen-instruct", "simple"]
"""How a problem becomes a prompt. `auto` and `model` both mean the chat template that the tokenizer brings along."""

REASON_STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
COT_INSTRUCTION = "\n" + REASON_STEP_BY_STEP
"""The paper's chain-of-thought request, as it stands after the problem."""


def render_chatml(problem: str, system: str) -> str:
    """Qwen's ChatML up to the generation marker; an empty `system` leaves the system turn out.

    Example:
        >>> render_chatml("1 + 1?", "Be brief.")
        '<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\n1 + 1?<|im_end|>\\n<|im_start|>assistant\\n'
    """
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"


def render_simple(problem: str, system: str) -> str:
    """The paper's prompt for base models that know no chat. It ends in a space, as the authors' does."""
    assert not system, "the simple template has no system turn"
    return f"Question:\n{problem}\nAnswer:\nLet's think step by step. "


NAMED_TEMPLATES: dict[str, tuple[Callable[[str, str], str], str, str]] = {
    "qwen-base": (render_chatml, "You are a helpful assistant.", COT_INSTRUCTION),
    "qwen-instruct": (render_chatml, REASON_STEP_BY_STEP, ""),
    "simple": (render_simple, "", ""),
}
"""The paper's three templates: (function, its default system prompt, its default instruction)."""


def jinja_template(before: str, after: str, ended: str) -> str:
    """A chat template that puts a user's turn between two texts, and another text behind an assistant's turn."""
    return (
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        f"{{{{- {_jinja_text(before)} + message['content'] + {_jinja_text(after)} }}}}"
        f"{{%- elif message['role'] == 'assistant' %}}{{{{- message['content'] + {_jinja_text(ended)} }}}}"
        "{%- endif %}{%- endfor %}"
    )


def _jinja_text(text: str) -> str:
    """A Jinja string literal that means `text`."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"
