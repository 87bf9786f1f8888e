"""A model's tokenizer, as its own tokenizer.json reads text, or an error that says what is in the way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import cached_file

from w2sr.locations import locate_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_TEXT = "Tom has 12 naïve pens.\n\n  So 1,024 kites – 濡? \\boxed{\\frac{1}{2}} don't"
"""Words, digits, punctuation, spaces, LaTeX and other scripts: what classes of tokenizers split differently."""
NUM_PROBE_TOKENS = 64
"""So many tokens of the vocabulary are probed as text too: a small one may know no word of the text above."""

THOUGHT_TOKENS = ("<think>", "</think>")
"""What encloses reasoning. It is text of a completion, also where a tokenizer calls it special."""


def load_tokenizer(model_name_or_path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model directory or hub name.

    transformers 5 may replace a tokenizer by the class that it knows for the `model_type` (a `qwen2` directory always
    becomes its Qwen2Tokenizer), which then reads text as ids that the model does not know. So a probe is compared.

    Raises:
        ValueError: there is no tokenizer, it is not a fast one, or it differs from its own tokenizer.json.
    """
    name = str(model_name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate_model(model_name_or_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:  # which one depends on what is missing
        raise ValueError(
            f"No tokenizer at {name!r}. Give a directory with tokenizer.json and tokenizer_config.json, or a hub name "
            f"that can be reached. ({str(error).splitlines()[0]})"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"The tokenizer of {name!r} is not a fast one. Add its tokenizer.json.")
    file = _tokenizer_file(locate_model(model_name_or_path))
    if file is not None:
        _check_same(name, tokenizer, Tokenizer.from_file(str(file)))
    return tokenizer


def generation_end_ids(model_name_or_path: str | Path) -> tuple[int, ...]:
    """The tokens on which a model's generation_config.json ends a completion; none where there is no such file.

    Instruction-tuned models list several (Llama 3: the end of a text, of a message and of a turn), of which the
    tokenizer names one.

    Raises:
        ValueError: `eos_token_id` there is neither an id nor a list of ids.
    """
    file = cached_file(
        locate_model(model_name_or_path), "generation_config.json", _raise_exceptions_for_missing_entries=False
    )
    ids = None if file is None else json.loads(Path(file).read_text()).get("eos_token_id")
    listed = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(end) is int for end in listed):
        raise ValueError(f"{file} has eos_token_id={ids!r}; it must be a token id, or a list of token ids.")
    return tuple(listed)


def _tokenizer_file(model: str) -> Path | None:
    """The tokenizer.json of a directory or of a hub snapshot in the cache; None where the model has none."""
    if Path(model).is_dir():
        file = Path(model) / "tokenizer.json"
        return file if file.is_file() else None
    cached = try_to_load_from_cache(model, "tokenizer.json")
    return Path(cached) if isinstance(cached, str) else None


def _check_same(name: str, tokenizer: PreTrainedTokenizerBase, own: Tokenizer) -> None:
    """Raises a ValueError where the loaded tokenizer gives other ids than its tokenizer.json."""
    own.no_padding()
    own.no_truncation()
    for text in (PROBE_TEXT, _vocabulary_text(tokenizer, own)):
        own_ids = own.encode(text, add_special_tokens=False).ids
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids != own_ids:
            at = next((i for i, (a, b) in enumerate(zip(ids, own_ids, strict=False)) if a != b), 0)
            raise ValueError(
                f"The tokenizer of {name!r} was loaded as {type(tokenizer).__name__}, which reads {text[:24]!r}... as "
                f"{len(ids)} tokens, {ids[at : at + 5]} from number {at} on; its own tokenizer.json gives "
                f"{len(own_ids)}, {own_ids[at : at + 5]}: the model would see ids that mean other text. Set "
                "tokenizer_class to TokenizersBackend in tokenizer_config.json. Where transformers overrules that "
                "(model_type qwen2), use a model_type that keeps its own tokenizer, such as qwen3 or llama."
            )


def _vocabulary_text(tokenizer: PreTrainedTokenizerBase, own: Tokenizer) -> str:
    """Ordinary tokens from all over the vocabulary, as text; spellings that either side treats as control are not."""
    control = set(tokenizer.get_added_vocab()) | {token.content for token in own.get_added_tokens_decoder().values()}
    vocabulary = own.get_vocab(with_added_tokens=False)
    ordinary = sorted(vocabulary.keys() - control, key=vocabulary.__getitem__)
    return " ".join(ordinary[:: max(1, len(ordinary) // NUM_PROBE_TOKENS)])


def with_control_tokens(tokenizer: PreTrainedTokenizerBase, control: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer with these of its added tokens special, and `<think>` and `</think>` not.

    Special tokens are dropped in decoding, and text that spells one is data. A token that ends a turn must be one of
    them. `<think>` must not: without it, a thought would be read as the answer.

    Args:
        tokenizer: is left as it is; it is returned itself where nothing changes.
        control: tokens to make special. Those that are ordinary words of the vocabulary stay what they are.
    """
    wanted = dict.fromkeys(control, True) | dict.fromkeys(THOUGHT_TOKENS, False)
    added = tokenizer.added_tokens_decoder.values()
    if all(token.special == wanted.get(token.content, token.special) for token in added):
        return tokenizer
    changed: Any = copy.deepcopy(tokenizer)
    description = json.loads(changed.backend_tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] = wanted.get(token["content"], token["special"])
    changed._tokenizer = Tokenizer.from_str(json.dumps(description))
    return changed
