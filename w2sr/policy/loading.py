"""Policies from model directories, from the hub, and from configurations: whole, empty or random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from w2sr.attention import ATTENTION_NAME, Engine
from w2sr.locations import locate_model
from w2sr.policy.model import Policy
from w2sr.policy.probe import check_model

DTypeName = Literal["float32", "bfloat16"]


def context_length(model_name_or_path: str, *, trust_remote_code: bool = False) -> int | None:
    """Positions that a model has, from its configuration alone; None where that does not say."""
    config = AutoConfig.from_pretrained(locate_model(model_name_or_path), trust_remote_code=trust_remote_code)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def load_policy(
    model_name_or_path: str | Path,
    *,
    dtype: DTypeName = "float32",
    attention: Engine | Literal["auto"] = "auto",
    trust_remote_code: bool = False,
    checked: bool = True,
) -> Policy:
    """Loads a causal LM from a directory or a hub name (see `locate_model`). Weights are safetensors only.

    Args:
        model_name_or_path: the directory or hub name.
        dtype: of the weights.
        attention: see `Policy`.
        trust_remote_code: allow code from the model's repository.
        checked: compare it with its own forward pass (see `check_model`).

    Raises:
        ValueError: the model cannot be run on packed rows, or differs there.
    """
    model_name_or_path = locate_model(model_name_or_path)
    config = _packed_config(AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code))
    transformers_logging.disable_progress_bar()  # of a load that takes milliseconds
    with _named_refusal(config):
        lm = AutoModelForCausalLM.from_pretrained(
            model_name_or_path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    policy = Policy(lm.train(), attention)
    if checked:
        check_model(policy)
    return policy


def empty_policy(
    model_name_or_path: str | Path,
    *,
    dtype: DTypeName = "float32",
    attention: Engine | Literal["auto"] = "auto",
    trust_remote_code: bool = False,
) -> Policy:
    """The policy that `load_policy` gives, on the meta device: shapes without weights, to be sharded and filled."""
    model_name_or_path = locate_model(model_name_or_path)
    config = _packed_config(AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code))
    with torch.device("meta"), _named_refusal(config):
        lm = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=trust_remote_code,
        )
    return Policy(lm.train(), attention)


def new_policy(config: Any, attention: Engine | Literal["auto"] = "auto") -> Policy:
    """A randomly initialised policy of this transformers config: for pretraining, tests and benchmarks."""
    with _named_refusal(config):
        lm = AutoModelForCausalLM.from_config(_packed_config(config), attn_implementation=ATTENTION_NAME)
    return Policy(lm, attention)


@contextmanager
def _named_refusal(config: Any) -> Iterator[None]:
    """Says what it means that a model looks an attention class up by a name that only AttentionInterface knows."""
    try:
        yield
    except KeyError as error:
        if error.args != (ATTENTION_NAME,):
            raise
        raise ValueError(
            f"Models of type {config.model_type!r} have attention classes of their own, outside of transformers' "
            "AttentionInterface, so they cannot be packed. Use a model of docs/models.md."
        ) from error


def _packed_config(config: Any) -> Any:
    """Training a student without attention dropout, as the paper's models are configured."""
    config.attention_dropout = 0.0
    return config
