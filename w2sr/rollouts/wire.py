"""What an OpenAI-compatible server is sent, and what its reply must hold. Pure: values in, nouns out.

Three ways to ask. `tokens`: vLLM's `/completions` with our token ids, and token ids back. `completions`: the same path
with the prompt as text. `chat`: `/chat/completions`, where the server's own template makes the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from w2sr.chat import Chat
from w2sr.rollouts.patience import FailedTry
from w2sr.rollouts.sampling import request_seed
from w2sr.types import Completion, FinishReason, SampleRequest, Sampling

Api = Literal["tokens", "completions", "chat"]

PATHS: dict[Api, str] = {"tokens": "/completions", "completions": "/completions", "chat": "/chat/completions"}
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings that a server would else take from the model's generation_config.json; Qwen's have a repetition penalty."""

MAX_QUOTE = 200
"""Characters of a server's words that an error message repeats."""


def request_body(
    api: Api,
    model: str,
    request: SampleRequest,
    sampling: Sampling,
    chat: Chat,
    policy_version: int,
    *,
    follows: bool = False,
) -> dict[str, Any]:
    """The JSON of one request.

    With `tokens` sampling is exactly ours: NEUTRAL settings, and only our stop tokens end a completion. Where the
    server `follows` a policy, it is asked for the log-probabilities of the sampled tokens, unless `top_p` cuts: those
    that it knows then are of what is left.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": sampling.max_new_tokens - request.num_done,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request_seed(sampling, request, policy_version),
    }
    if api == "tokens":
        stops = {"stop_token_ids": list(chat.stop_token_ids), "ignore_eos": True, "return_token_ids": True}
        texts = {"stop": list(sampling.stop_text), "include_stop_str_in_output": True, "skip_special_tokens": False}
        logprobs = {"logprobs": 0} if follows and sampling.top_p == 1 else {}
        return {**body, **NEUTRAL, **stops, **texts, **logprobs, "prompt": list(request.prompt_ids)}
    if sampling.stop_text or request.num_done:
        raise ValueError(
            f"api={api} cannot end completions at sampling.stop_text={sampling.stop_text} and go on behind them: such "
            "a server does not say where it stopped. Use api=tokens with a vLLM server, or unset it."
        )
    assert request.prompt and request.messages, "requests for a server that reads text come from sample_requests"
    if api == "completions":
        return {**body, "prompt": request.prompt, "stop": [chat.stop_token]}
    return {**body, "messages": [{"role": role, "content": content} for role, content in request.messages]}


def read_reply(api: Api, text: str, request: SampleRequest, chat: Chat, policy_version: int = 0) -> Completion:
    """The completion in a reply, with the log-probabilities that it holds.

    Raises:
        FailedTry: the reply is not JSON, lacks a field, has not exactly one choice, or holds an aborted completion.
        ValueError: the server will never do what we need: it tells no token ids, or changed the prompt.
    """
    choice = _only_choice(text)
    reason = choice.get("finish_reason")
    if reason in ("abort", "error") or (api == "tokens" and reason not in ("stop", "length")):
        raise FailedTry(f"the server ended a completion with finish_reason {reason!r}")
    finish: FinishReason = reason if reason in ("stop", "length") else "unknown"
    if api == "tokens":
        token_ids = _token_ids(choice, request, text)
        written = token_ids[:-1] if token_ids and token_ids[-1] in chat.stop_token_ids else token_ids
        return Completion(
            request.problem_id,
            request.sample_index,
            token_ids,
            chat.decode(written),
            finish,
            logprobs=_logprobs(choice, len(token_ids), text),
            policy_version=policy_version,
        )
    written_text = _text(choice, text) if api == "completions" else _message_text(choice, text)
    ids = chat.completion_ids(written_text, finished=finish == "stop")
    return Completion(request.problem_id, request.sample_index, tuple(ids), written_text, finish, retokenized=True)


def _only_choice(text: str) -> Mapping[str, Any]:
    choices = _json_object(text).get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise FailedTry(f"the server's reply has no list of choices: {quote(text)}")
    if len(choices) != 1:
        raise FailedTry(f"the server's reply has {len(choices)} choices; one was asked for: {quote(text)}")
    only: Mapping[str, Any] = choices[0]
    return only


def _token_ids(choice: Mapping[str, Any], request: SampleRequest, text: str) -> tuple[int, ...]:
    """The choice's own token ids, after a look at the prompt's: a server may be told to cut prompts."""
    ids, prompt_ids = choice.get("token_ids"), choice.get("prompt_token_ids")
    if ids is None and isinstance(choice.get("text"), str):
        raise ValueError(
            "The server's reply holds text and no token_ids: it is no vLLM, or something between drops what it does "
            "not know. Set engine.init_args.api to completions or chat."
        )
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise FailedTry(f"the server's reply has no token ids: {quote(text)}")
    if prompt_ids is not None and prompt_ids != list(request.prompt_ids):
        raise ValueError(
            f"The server changed the prompt of problem '{request.problem_id}': {len(request.prompt_ids):,} token ids "
            f"were sent and it read {len(prompt_ids):,}. Start it without truncate_prompt_tokens."
        )
    return tuple(ids)


def _logprobs(choice: Mapping[str, Any], num_tokens: int, text: str) -> tuple[float, ...] | None:
    """The log-probability of each token, or None where the reply has none."""
    if (told := choice.get("logprobs")) is None:
        return None
    logprobs = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(logprobs, list) or not all(type(logprob) in (float, int) for logprob in logprobs):
        raise FailedTry(f"the server's reply has no list of log-probabilities: {quote(text)}")
    if len(logprobs) != num_tokens:
        raise FailedTry(f"the server's reply has {len(logprobs)} log-probabilities of {num_tokens} tokens")
    return tuple(map(float, logprobs))


def _text(choice: Mapping[str, Any], text: str) -> str:
    written = choice.get("text")
    if not isinstance(written, str):
        raise FailedTry(f"the server's reply has no text: {quote(text)}")
    return written


def _message_text(choice: Mapping[str, Any], text: str) -> str:
    """An assistant's turn. Reasoning that the server split off is put back in front: it is most of a trace."""
    message = choice.get("message")
    if not isinstance(message, dict):
        raise FailedTry(f"the server's reply has no message: {quote(text)}")
    content = message.get("content") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(content, str) or not isinstance(reasoning, str) or (not content and "content" not in message):
        raise FailedTry(f"the server's reply has a message without text: {quote(text)}")
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content


def read_models(text: str) -> list[Mapping[str, Any]]:
    """The cards in a reply of `/models`. Raises FailedTry where it holds none."""
    cards = _json_object(text).get("data")
    if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
        raise FailedTry(f"the server's list of models has no data: {quote(text)}")
    return cards


def read_stamp(text: str) -> str:
    """The name of a vLLM server's weights in a reply of `/weight_info`. Raises FailedTry where it holds none."""
    stamp = _json_object(text).get("weight_version")
    if not isinstance(stamp, str):
        raise FailedTry(f"the server's reply to /weight_info has no weight_version: {quote(text)}")
    return stamp


def check_reset(text: str) -> None:
    """Raises FailedTry where a reply of `/reset_prefix_cache` says that requests still use the cache."""
    if _json_object(text).get("success") is not True:
        raise FailedTry("the server still works on other requests, so it kept its prefix cache over the update")


def choose_model(
    listed: Sequence[Mapping[str, Any]], wanted: str | None, asked: str, base_url: str
) -> Mapping[str, Any]:
    """The card of the wanted model; where none is wanted, of the one with the name of ours, or of the only one.

    Raises:
        ValueError: the server lists no such model, or several under other names.
    """
    for card in listed:
        if card["id"] == (asked if wanted is None else wanted):
            return card
    if wanted is None and len(listed) == 1:
        return listed[0]
    names = ", ".join(str(card["id"]) for card in listed[:10]) or "nothing"
    raise ValueError(
        f"The server at {base_url} lists {names}; none is called {wanted or asked!r}. Set "
        "engine.init_args.model to one that it lists."
    )


def check_same_ids(text: str, ids: Sequence[int], ours: str, base_url: str) -> None:
    """Compares a reply of vLLM's `/tokenize` with our ids of the same text.

    Raises:
        FailedTry: the reply holds no ids.
        ValueError: they differ.
    """
    theirs = _json_object(text).get("tokens")
    if not isinstance(theirs, list):
        raise FailedTry(f"the server's reply to /tokenize has no tokens: {quote(text)}")
    if theirs != list(ids):
        at = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
        raise ValueError(
            f"The server at {base_url} reads a probe as {len(theirs)} tokens, {theirs[at : at + 5]} from number {at} "
            f"on; the tokenizer of {ours!r} gives {len(ids)}, {list(ids[at : at + 5])}: our token ids would be other "
            "text to its model. Name the model that the server runs, or start the server with ours."
        )


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        reply = json.loads(text)
    except ValueError as error:
        raise FailedTry(f"the server's reply is not JSON: {quote(text)}") from error
    if not isinstance(reply, dict):
        raise FailedTry(f"the server's reply is no JSON object: {quote(text)}")
    return reply


def quote(text: str) -> str:
    """A server's words, short enough for an error message, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= MAX_QUOTE else f"{line[:MAX_QUOTE]}…")
