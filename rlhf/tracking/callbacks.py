"""User callbacks of the config key `callbacks`, imported by dotted name before a model is loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from transformers import TrainerCallback

from rlhf.core.errors import ConfigError, did_you_mean


def load_callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    """An instance of each `MODULE:CLASS`, made without arguments.

    Raises:
        ConfigError: a module cannot be imported, lacks the class, or the class is no TrainerCallback.
    """
    return [_load(f"callbacks.{number}", name) for number, name in enumerate(names)]


def _load(key: str, name: str) -> TrainerCallback:
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise ConfigError(
            f"{key} is {name!r}.",
            allowed="MODULE:CLASS, for example my_module:MyCallback",
            fix=f"write {name.replace('.', ':', 1)}" if "." in name else f"write {name}:CLASS",
        )
    module = _import(key, module_name)
    known = [
        item
        for item, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, TrainerCallback) and value is not TrainerCallback
    ]
    cls = getattr(module, class_name, None)
    if cls is None:
        raise ConfigError(
            f"{key}: the module {module_name} has no {class_name!r}.{did_you_mean(class_name, known)}",
            allowed=", ".join(known) or "a subclass of transformers.TrainerCallback",
            fix=f"write {module_name}:{known[0]}" if known else f"define {class_name} in {module.__file__}",
        )
    if not (isinstance(cls, type) and issubclass(cls, TrainerCallback)):
        raise ConfigError(
            f"{key}: {name} is not a subclass of transformers.TrainerCallback.",
            allowed=", ".join(known) or "a subclass of transformers.TrainerCallback",
            fix=f"write `class {class_name}(transformers.TrainerCallback)` in {module.__file__}",
        )
    try:
        return cls()
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{key}: {name}() raised {type(error).__name__}: {error}",
            allowed="a class that is made without arguments",
            fix=f"give the arguments of {class_name}.__init__ defaults",
        ) from error


def _import(key: str, name: str) -> ModuleType:
    """The module, with the current folder last on `sys.path` while it is imported."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key}: there is no module {error.name!r}.",
                allowed=f"a module of an installed package, or of the current folder ({folder})",
                fix=f"put {error.name}.py into {folder}, or pip install its package",
            ) from error
        raise ConfigError(
            f"{key}: importing {name} raised {type(error).__name__}: {error}",
            fix=f"python -c 'import {name}' shows the line; fix it",
        ) from error
    finally:
        sys.path.remove(folder)
