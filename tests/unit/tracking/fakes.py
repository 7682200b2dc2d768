"""Modules that stand in for trackio and wandb, whose packages the lock does not hold: they record what they
receive."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Recorder(ModuleType):
    """A fake tracker module.

    Attributes:
        calls: name, positional and keyword arguments of every call.
        fails: the calls that raise, by name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails: dict[str, Exception] = {}
        self.config = Settings(self.calls)
        self.run: Any = None

    def record(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        self.calls.append((name, args, kwargs))
        if name in self.fails:
            raise self.fails[name]

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of every call of a name."""
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]

    def init(self, **kwargs: Any) -> None:
        self.record("init", **kwargs)
        self.run = SimpleNamespace(id=kwargs.get("id"), _label=lambda code: None, summary={})

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.record("log", values, step=step)

    def finish(self) -> None:
        self.record("finish")
        self.run = None

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """wandb's."""

    def log_artifact(self, what: Any, **kwargs: Any) -> None:
        self.record("log_artifact", what, **kwargs)


class Settings(dict[str, Any]):
    """The tracker's config."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def update(self, values: Any, allow_val_change: bool = False) -> None:  # type: ignore[override]
        self.calls.append(("config", (dict(values),), {}))


class Table:
    """Columns and rows."""

    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.columns, self.data = columns, data


class Artifact:
    """Files under a name."""

    def __init__(self, name: str, type: str) -> None:  # noqa: A002
        self.name, self.type, self.files = name, type, list[Path]()

    def add_file(self, file: str) -> None:
        self.files.append(Path(file))


def fake_trackio(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    module = Recorder("trackio")
    vars(module).update(
        Table=Table,
        context_vars=SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None)),
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: True)
    return module


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    module = Recorder("wandb")
    vars(module).update(Table=Table, Artifact=Artifact, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for inner in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, inner, ModuleType(inner))
    vars(sys.modules["wandb.sdk.lib.config_util"])["ConfigError"] = type("ConfigError", (Exception,), {})
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    return module
