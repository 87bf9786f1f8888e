"""Where a path of a config lies: as given, or among the files that ship with w2sr."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def locate(path: str | Path) -> Path:
    """The path as given; one that begins with `w2sr/` and is not in the working directory lies in the package.

    >>> locate("w2sr/miniature/data").is_absolute() or Path("w2sr").is_dir()
    True
    """
    given = Path(path)
    if not given.exists() and given.parts[:1] == (PACKAGE.name,):
        return PACKAGE.parent / given
    return given


def locate_model(model_name_or_path: str | Path) -> str:
    """A model's directory, or the hub name as given.

    Raises:
        ValueError: it looks like a directory of this machine (absolute, `./`, `w2sr/`, `runs/`) and there is none.
    """
    path = locate(model_name_or_path)
    if path.is_dir():
        return str(path)
    name = str(model_name_or_path)
    if path.is_absolute() or name.startswith((".", "runs/", "w2sr/")) or name.count("/") != 1:
        raise ValueError(
            f"there is no model directory '{name}' (working directory {Path.cwd()}), and it is no hub name of the form "
            "organisation/model. Give a directory that holds config.json and *.safetensors, or such a name."
        )
    return name
