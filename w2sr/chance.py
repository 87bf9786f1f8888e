"""Every random choice of w2sr: a number that depends on the name of its use, a seed and the names of what it is about.

A choice depends neither on order, batch, rank nor restart, and two uses are independent: each use has a name of its
own, and the name is part of the hashed text. Without it, two uses of one seed would draw the same numbers for the same
trace: a corruption of rate 0.3 would hit every one of 2,000 traces that the selection drew.

`Use` lists the names. Each has exactly one call in the package; `tests/unit/test_chance.py` finds a second one, a
random generator outside of this file, and two uses whose numbers depend on each other.

Hashes of *contents* (a file, a problem's text, a template) are no choices and do not belong here.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

import numpy as np
import numpy.typing as npt

Use = Literal[
    "noise",  # the tokens of one sample
    "shard",  # the shard of a problem
    "packing",  # the order of traces in an epoch
    "held_out",  # which problems are held out of training
    "order",  # the order of problems in a pass
    "keep",  # whether a problem outside the curriculum's band is asked
    "minibatches",  # which groups of a round form an optimizer step
    "dropout",  # what adapters drop in an optimizer step
    "options",  # the order of the options of a multiple-choice problem
    "puzzles",  # generated puzzles
    "corrupted",  # which traces are corrupted
    "corruption_site",  # where in a trace the error is
    "num_traces",  # which traces are kept, by number
    "num_tokens",  # likewise, by tokens
    "choose",  # which traces of a problem are kept
    "top_frac",  # which of equal scores comes first
    "dedupe",  # whose copy is kept
    "first",  # whose trace of a problem comes first
    "best_teacher",  # which of equally good teachers is chosen
    "round_robin",  # the order in which problems are dealt to teachers
    "round_robin_tie",  # who gets a problem at equal credit
    "bootstrap",  # how often a replicate draws a problem
    "shown",  # which traces a page shows
]
"""The uses of chance. A new use needs a new name here."""

_WITHOUT_NAME: frozenset[Use] = frozenset({"noise", "shard", "held_out", "bootstrap", "puzzles"})
"""Uses whose text is spelled without the name, because stores that are resumed and published results depend on their
bits. They differ from all others and from each other in the number of parts, the separator or the kind of hash."""


def integer(use: Use, *key: str | int) -> int:
    """64 uniform bits, the same in every version of Python.

    Args:
        use: what the number is for.
        *key: the seed, if the use has one, and the names of what is chosen.

    >>> integer("order", 0, 3, "gsm8k/1") == integer("keep", 0, 3, "gsm8k/1")
    False
    """
    return int.from_bytes(hashlib.blake2b(_text(use, key), digest_size=8).digest(), "big")


def uniform(use: Use, *key: str | int) -> float:
    """A uniform number in [0, 1) with 53 bits."""
    return (integer(use, *key) >> 11) * 2.0**-53


def stream(use: Use, num: int, *key: str | int) -> npt.NDArray[np.uint64]:
    """`num` times 64 uniform bits, [num] uint64; the first ones do not depend on `num`.

    Philox (Salmon et al. 2011), of which NumPy promises the raw numbers across versions. Its 128-bit key is a hash of
    the text; only that of "packing" is the seed and the epoch themselves.
    """
    if use == "packing":
        return np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(num)
    digest = hashlib.blake2b(_text(use, key), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(num)


def permutation(use: Use, num: int, *key: str | int) -> npt.NDArray[np.int64]:
    """The numbers 0 ... num - 1 in a random order, [num] int64."""
    return np.argsort(stream(use, num, *key), kind="stable")


def generator(use: Use, *key: str | int) -> random.Random:
    """A generator for a use that draws an unknown number of times."""
    return random.Random(_text(use, key).decode())


def _text(use: Use, key: tuple[str | int, ...]) -> bytes:
    parts = key if use in _WITHOUT_NAME else (use, *key)
    return "|".join(map(str, parts)).encode("utf-8", "surrogatepass")
