"""Loads a user's reward function, and locates the user's line in a traceback.

A file is executed once, as a module with its folder first on `sys.path`: it may define dataclasses, import
modules beside it, also while one of its functions runs, and start processes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf.core.errors import ConfigError, did_you_mean
from rlhf.runs.signals import TerminatedError

_loading = threading.RLock()


def load_function(place: str) -> Callable[..., Any]:
    """The function at `FILE.py:NAME` or `MODULE:NAME`.

    Raises:
        ConfigError: there is no such file, module or function; or the file fails when it is executed.
    """
    where, _, name = place.rpartition(":")
    module = _from_file(place, Path(where)) if where.endswith(".py") else _installed(place, where)
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{where} has no function {name!r}.{did_you_mean(name, known)}",
            allowed=", ".join(known) or "a file that defines a function",
            fix=f"write {where}:{known[0]}" if len(known) == 1 else f"define {name} in {where}",
        )
    if not callable(function):
        raise ConfigError(
            f"{place} is a {type(function).__name__}, not a function.",
            allowed="def NAME(prompts, completions, **kwargs) -> list of numbers",
        )
    return function  # type: ignore[no-any-return]


@contextmanager
def as_from_its_folder(place: str) -> Iterator[None]:
    """Run the user's code of `FILE.py:NAME` with its folder first on `sys.path`; keep the working directory.

    `MODULE:NAME` has no folder. A function that changes the working directory would move the run's files.
    """
    where = place.rpartition(":")[0]
    try:
        working_directory: Path | None = Path.cwd()
    except FileNotFoundError:  # it was deleted
        working_directory = None
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else None
    if folder is not None:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        if working_directory is not None:
            os.chdir(working_directory)


def user_line(error: BaseException, file: str, otherwise: str) -> str:
    """`FILE:LINE` of the deepest line of the user's own code that led to an error.

    Args:
        file: the user's file; files beside it count as the user's code, libraries do not.
        otherwise: returned where no frame is in the user's code, as with a wrong argument.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno and Path(error.filename).is_file():
        return f"{error.filename}:{error.lineno}"
    folder = Path(file).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file or Path(frame.filename).resolve().parent == folder:
            return f"{frame.filename}:{frame.lineno}"
    return otherwise


def definition_of(function: Callable[..., Any], place: str) -> str:
    """`FILE:LINE` where a function is defined; `place` where Python has no source line."""
    inner: Any = function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if not hasattr(inner, "__code__"):  # a callable object
        inner = vars(type(inner)).get("__call__")
    code = getattr(inner, "__code__", None)
    return place if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _from_file(place: str, file: Path) -> ModuleType:
    """The module of a file; executed at the first use, and again when the file has changed."""
    if not file.is_file():
        folder = file.absolute().parent
        near = [str(file.parent / other.name) for other in folder.glob("*.py")] if folder.is_dir() else []
        missing = f"there is no file {file.absolute()}" if folder.is_dir() else f"there is no folder {folder}"
        raise ConfigError(
            f"The reward function {place} cannot be loaded: {missing}.{did_you_mean(str(file), near)}",
            allowed="FILE.py:NAME with a path from the current folder, or MODULE:NAME of an installed "
            "package",
        )
    file = file.resolve()
    state = file.stat()
    version = f"{state.st_mtime_ns}:{state.st_size}"
    name = _module_name(file)
    with _loading:
        known = sys.modules.get(name)
        if known is not None and vars(known).get("__reward_version__") == version:
            return known
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None  # its name ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up a class's module there
        try:
            with as_from_its_folder(place):
                spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt | TerminatedError):
                raise
            raise _cannot_load(place, file, error) from error
        vars(module)["__reward_version__"] = version
        return module


def _module_name(file: Path) -> str:
    """The file's own name, which modules beside it and processes it spawns import it by; where another module
    has that name, such as `statistics`, a unique one."""
    loaded = sys.modules.get(file.stem)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
        origin = str(file) if spec is None else spec.origin
    if file.stem.isidentifier() and origin is not None and Path(origin).resolve() == file:
        return file.stem
    return f"reward_function_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _installed(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (KeyboardInterrupt, TerminatedError):
        raise
    except BaseException as error:  # user code may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
            raise ConfigError(
                f"The reward function {place} cannot be loaded: no module {error.name!r} is installed.",
                allowed="FILE.py:NAME with a path from the current folder, or MODULE:NAME of an installed "
                "package",
                fix=f"for a file write {name.replace('.', '/')}.py:{place.rpartition(':')[2]}",
            ) from error
        raise _cannot_load(place, None, error) from error


def _cannot_load(place: str, file: Path | None, error: BaseException) -> ConfigError:
    """The error for a module that fails when executed, with the user's line and a fix for its cause."""
    last = [
        f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"
    ]
    where = user_line(error, str(file), str(file)) if file is not None else last[-1]
    if isinstance(error, SystemExit):
        what = f"sys.exit({'' if error.code is None else repr(error.code)}) when it is imported"
        fix = "put what runs as a script under `if __name__ == '__main__':`"
    elif isinstance(error, ModuleNotFoundError):
        what = f"{type(error).__name__}: {error}"
        fix = (
            f"install it (pip install {error.name}), or put {error.name}.py beside the reward function's file"
        )
    elif isinstance(error, ImportError) and "relative import" in str(error):
        what = f"{type(error).__name__}: {error}"
        fix = f"write `import NAME` or `from NAME import ...` at {where}: the file's folder is on the path"
    else:
        what, fix = f"{type(error).__name__}: {error}", f"fix {where}"
    return ConfigError(f"The reward function {place} cannot be loaded: {where}: {what}", fix=fix)
