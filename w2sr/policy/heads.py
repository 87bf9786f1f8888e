"""How a model turns hidden states into logits, read from its configuration. The probe compares it with the model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from w2sr.logprobs import LogitForm

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def logit_form(lm: PreTrainedModel) -> LogitForm:
    """The form of a causal LM's logits: Granite's `logits_scaling` divides them, Cohere's `logit_scale` multiplies.

    Raises:
        ValueError: the model has no linear output layer, so its logits are no products of hidden states.
    """
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(lm).__name__} has {type(head).__name__} as its output layer; log-probabilities need a linear one, "
            "from hidden states to the vocabulary. Use another model."
        )
    config = lm.config.get_text_config()
    caps = [cap for cap in (getattr(config, name, None) for name in SOFTCAPS) if cap is not None]
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return LogitForm(float(scale), float(caps[0]) if caps else None)
