"""The style that all plots by matplotlib share."""

from __future__ import annotations

from typing import Any

INK, SOFT, FAINT = "#1f2328", "#636a72", "#e4e1db"
"""Colours of titles, of labels and of grid lines."""


def style_axes(axes: Any) -> None:
    """Draw axes as a faint grid with a single line at the bottom."""
    axes.tick_params(labelsize=8.5, colors=SOFT, length=0)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
