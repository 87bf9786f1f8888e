"""`ask STUDENT "QUESTION"`: one answer of a model directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from w2sr.locations import locate_model
from w2sr.types import SampleRequest, Sampling


def main(argv: Sequence[str]) -> None:
    """`ask STUDENT "QUESTION"`: prints one completion as the model writes it."""
    parser = argparse.ArgumentParser(prog="ask", description="One answer of a model directory or hub name.")
    parser.add_argument("student")
    parser.add_argument("question")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", default="auto")
    parser.add_argument("--template_date", help="the day that a template with a date shows, as 2026-11-30")
    parser.add_argument("--instruction", help="text appended to the question, such as a chain-of-thought prompt")
    args = parser.parse_args(argv)

    import torch  # here, as what follows imports it too: help comes without

    from w2sr.chat import Chat
    from w2sr.rollouts import Embedded

    student = str(locate_model(args.student))
    chat = Chat.load(student, template=args.template, instruction=args.instruction, template_date=args.template_date)
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    request = SampleRequest("ask", 0, tuple(chat.prompt_ids(args.question)))
    with Embedded().open(student, chat, torch.device("cpu")) as generator:
        (completion,) = generator.stream([request], sampling)
    print(completion.text)
    if completion.finish_reason == "length":
        print(f"[cut off at --max_new_tokens {args.max_new_tokens}]", file=sys.stderr)
