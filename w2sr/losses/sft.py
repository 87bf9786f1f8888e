"""The loss of supervised fine-tuning.

Legend: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor


def sft_loss(logprobs: Tensor, num_step_loss_tokens: int) -> Tensor:
    """This row's part of the mean negative log-likelihood of the whole optimizer step, in nats a token.

    loss = - sum_t log p(y_t | x, y_<t) / (loss tokens of the step), arXiv 2505.20072. Parts of a step add up to its
    mean however its tokens are split into rows, micro-steps and ranks. `logprobs` [T] is 0 where a label carries no
    loss; their sum will do.

    >>> import torch
    >>> row_1, row_2 = torch.tensor([0.0, -1.0]), torch.tensor([-2.0, -3.0, 0.0])
    >>> (sft_loss(row_1, 3) + sft_loss(row_2, 3)).item()
    2.0
    """
    return -logprobs.sum() / num_step_loss_tokens
