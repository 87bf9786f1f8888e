"""Whether the text of a completion that is being written ends with one of given texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class StopText:
    """Knows which tokens can end a stop text, so that few completions have to be decoded.

    Args:
        texts: the stop texts; none of them is empty.
        decode: token ids → text.
    """

    def __init__(self, texts: tuple[str, ...], decode: Callable[[Sequence[int]], str]) -> None:
        if "" in texts:
            raise ValueError(f"sampling.stop_text={texts} holds an empty text, with which everything ends. Remove it.")
        self.texts, self.decode = texts, decode
        self._can_end: dict[int, bool] = {}

    def is_met(self, token_ids: np.ndarray) -> bool:
        """Whether the completion [L] ends with a stop text. A token that writes past the text's end hides it."""
        if not self.texts or not len(token_ids):
            return False
        newest = int(token_ids[-1])
        if newest not in self._can_end:
            written = self.decode([newest])
            # a token may write only a part of a character, which decodes to something else
            self._can_end[newest] = not written.isascii() or any(
                text.endswith(written) or written.endswith(text) for text in self.texts
            )
        if not self._can_end[newest]:
            return False
        # a token writes at least a byte, so the text's bytes and some to spare hold it
        longest = max(len(text.encode()) for text in self.texts)
        return self.decode(token_ids[-longest - 4 :].tolist()).endswith(self.texts)
