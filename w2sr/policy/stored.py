"""The names and the layout that a model's weights have in files, where those differ from the ones in memory.

transformers fuses the experts of a mixture into one tensor when it loads (`experts.0.gate_proj.weight`, … →
`experts.gate_up_proj`), and takes them apart when it saves. What it does is asked of its own conversion mapping, for a
part of the model at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

BLOCK = re.compile(r".*?\.\d+\.")
"""The beginning of the names of one transformer block."""


class StoredWeights:
    """Finds what each weight in memory is made of.

    Args:
        lm: the model, also one on the meta device or with adapters.
        names: of the tensors in its files.
        read: returns a tensor of the files.
    """

    def __init__(self, lm: PreTrainedModel, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self.lm, self.read = lm, read
        mapping = get_model_conversion_mapping(lm)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        in_memory = dict.fromkeys((memory_name(name) for name in lm.state_dict()), True)
        self.renamed: dict[str, str] = {}
        self._made: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, lm.base_model_prefix, in_memory)
            if pattern is None or name in in_memory:
                self.renamed[name if name in in_memory else target] = name
            else:
                self._made.setdefault(target, (by_pattern[pattern], []))[1].append((name, pattern))

    def sources(self, name: str) -> list[str]:
        """The tensors of the files that a weight is converted from; none where it is stored as it is, or not at all."""
        return [source for source, _ in self._made.get(name, (None, []))[1]]

    def convert(self, name: str) -> Tensor:
        """A weight that has `sources`, in the layout that it has in memory."""
        converter, sources = self._made[name]
        converter = deepcopy(converter)
        for source, pattern in sources:
            converter.add_tensor(name, source, pattern, self.read(source))
        made = converter.convert(name, model=self.lm, config=self.lm.config)[name]
        return made[0] if isinstance(made, list) else made


def memory_name(name: str) -> str:
    """The name of a weight without the layers that peft puts round it."""
    return name.replace(".base_layer", "")


def stored_form(lm: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under their names in memory → as transformers stores them. One block of the model is held at a time."""
    held: dict[str, Tensor] = {}
    block = None
    for name, weight in weights:
        found = BLOCK.match(name)
        beginning = found and found.group()
        if held and beginning != block:
            yield from revert_weight_conversion(lm, held).items()
            held = {}
        held[name], block = weight, beginning
    yield from revert_weight_conversion(lm, held).items()
