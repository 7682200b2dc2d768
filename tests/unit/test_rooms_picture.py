"""docs/rooms.svg shows the rooms and imports of the source."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def draw_rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_rooms", DOCS / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_up_to_date_and_names_every_room(draw_rooms: ModuleType) -> None:
    shown = draw_rooms.PICTURE.read_text(encoding="utf-8")
    assert all(f">{room}<" in shown for room in draw_rooms.floors().FLOORS if room != "rlhf")
    assert shown == draw_rooms.picture(), "run: python docs/draw_rooms.py"


def test_imports_that_follow_from_others_are_left_out(draw_rooms: ModuleType) -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert draw_rooms.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
