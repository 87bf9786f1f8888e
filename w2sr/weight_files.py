"""A model's safetensors on disk: read by name, a range of rows at a time, and written one tensor after the other.

So no process ever holds a whole model: shards take their rows from the files, and an export holds one file's worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_FILE_BYTES = 5 * 10**9
"""What one file of a written model holds at most, and so what writing holds in memory: 5 GB, as in transformers."""


class WeightFiles:
    """The safetensors of a model directory, one file or many with an index. Files are mapped, and read where asked for.

    Raises:
        ValueError: the directory holds no safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        if (self.folder / INDEX).is_file():
            self._file_of: dict[str, str] = json.loads((self.folder / INDEX).read_text())["weight_map"]
        elif (self.folder / SINGLE).is_file():
            self._file_of = dict.fromkeys(self._opened(SINGLE).keys(), SINGLE)
        else:
            raise ValueError(
                f"{self.folder} holds neither {SINGLE} nor {INDEX}. Weights are read from safetensors only: convert "
                "the model, or name another one."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        return list(self._file_of)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """The rows (first dimension) of a tensor; nothing else of it is read."""
        part: Tensor = self._opened(self._file_of[name]).get_slice(name)[rows]
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._opened(self._file_of[name]).get_slice(name).get_shape())

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            if not (self.folder / file).is_file():
                raise ValueError(f"{self.folder / INDEX} names the file {file}, which is absent. Copy the model anew.")
            self._open[file] = safe_open(self.folder / file, framework="pt")
        return self._open[file]


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Writes named tensors as `model.safetensors`, or as files of at most `max_file_bytes` each with an index.

    Tensors are taken one after the other and dropped as soon as their file is full. Weight files that lay there before
    are removed: an index would mix them with the new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    parts: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = 0
    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_file_bytes:
            _write_part(folder, held, parts)
            held, held_bytes = {}, 0
        held[name] = tensor.detach().cpu().contiguous()
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    _write_part(folder, held, parts)
    if len(parts) == 1:
        _part(folder, 1).rename(folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        _part(folder, number).rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_part(folder: Path, tensors: dict[str, Tensor], parts: list[list[str]]) -> None:
    parts.append(list(tensors))
    save_file(tensors, _part(folder, len(parts)), metadata={"format": "pt"})


def _part(folder: Path, number: int) -> Path:
    """The name of a file while it is not known how many there will be."""
    return folder / f"model-{number:05d}.safetensors"
