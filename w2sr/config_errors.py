"""What the command line says when a configuration does not parse: one short letter instead of a page."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from w2sr.rows import nearest

_NO_BASE = ("lightning.LightningModule", "lightning.LightningDataModule")
_NOISE = re.compile(
    r"Expected a path but [\[{]|Subtypes?:|Expected a <class 'NoneType'>|Given value|Does not validate|Errors:$|"
    r"Parser key "
)


class Parser(LightningArgumentParser):
    """LightningCLI's parser with one-message errors. W2SR_TRACEBACK=1 shows where an error was raised."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """None: argparse would take `--trainer.max_epoch` for `max_epochs`, and many a typing error like it."""
        return []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside another one, which says it with its own context
            super().error(message, ex)
        if os.environ.get("W2SR_TRACEBACK") and ex is not None:
            raise ex
        hint = _nearest_option(message, self._options())
        print(f"error: {config_letter(message)}{hint}", file=sys.stderr)
        sys.exit(2)

    def _options(self) -> set[str]:
        """The options of this parser and of its subcommands."""
        parsers = [self, *(getattr(self._subcommands_action, "_name_parser_map", None) or {}).values()]
        return {option for parser in parsers for option in parser._option_string_actions}


def _nearest_option(message: str, options: set[str]) -> str:
    """A hint for an option that is not known, where one like it is."""
    unknown = re.search(r"unrecognized arguments: (--[\w.]+)", message)
    hint = nearest(unknown[1], sorted(options)) if unknown else ""
    return f".{hint}" if hint else ""


def config_letter(message: str) -> str:
    """A parser's message, shortened to what is wrong, with the nearest key where one is unknown.

    >>> print(config_letter("Subcommand 'fit' does not accept option 'trainer.max_epoch'"))
    The configuration sets trainer.max_epoch, which is no key of the trainer. Did you mean 'max_epochs'?
    """
    unknown = re.search(r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted", message)
    # the innermost is the last; of a callable, such as an optimizer, only the value tells the class
    owners = re.findall(r"(?:given class_path |expects a function .* Namespace\(class_path=)'([\w.]+)'", message)
    if owners and owners[-1] in _NO_BASE:
        key = "model" if owners[-1].endswith("Module") and "DataModule" not in owners[-1] else "data"
        return (
            f"A configuration sets {key}.init_args before any names {key}.class_path: an overlay stands before its "
            f"base, or there is no base. Put the base first: --config configs/w2sr_p.yaml --config OVERLAY."
        )
    if unknown:
        return _unknown_key(unknown[1] or unknown[2], owners[-1] if owners else None)
    lines = [line.strip(" -") for line in message.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    place = re.findall(r'Parser key "([\w.]+)"', message)
    where = f"{'.init_args.'.join(place)}: " if len(place) > 1 else f"{place[0]}: " if place else ""
    said = [line for line in kept if not line.startswith("Problem with given class_path")] or kept or [message]
    first = re.sub(r'^Parser key "[\w.]+": ?', "", " ".join(dict.fromkeys(said)).replace("typing.", ""))
    first = re.sub(r"Type \S*Callable\[.*expects a function or a callable class: ", "", first)
    return f"{where}{first or message}{_nearest_class(first)}"


def _nearest_class(message: str) -> str:
    """A hint for a class that its module does not have."""
    absent = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    return nearest(absent[2], dir(importlib.import_module(absent[1]))) if absent else ""


def _unknown_key(key: str, class_path: str | None) -> str:
    """Names the key that is not there, its owner, and the nearest that is."""
    if class_path is not None:
        module, name = class_path.rsplit(".", 1)
        known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        return f"The configuration sets {key}, which is no argument of {class_path}.{nearest(key.split('.')[0], known)}"
    group, _, name = key.partition(".")
    if group == "trainer" and name:
        known = inspect.signature(L.Trainer).parameters
        return f"The configuration sets {key}, which is no key of the trainer.{nearest(name, known)}"
    top = ("trainer", "model", "data", "seed_everything", "ckpt_path", "optimizer", "lr_scheduler", "config")
    return f"The configuration sets {key}, which is no key.{nearest(group, top)} Keys: {', '.join(top)}."
