"""Markdown of tables and lists."""

from __future__ import annotations

from rlhf.core.markdown import bullets, table


def test_names_of_sources_are_text_and_not_html() -> None:
    """A row's `source` is anybody's text; code spans show it as it stands."""
    hostile = "x\n# y <script>alert(1)</script>"
    assert bullets([f"3 prompts of {hostile}", "Reward: `a<b`"]) == (
        "- 3 prompts of x # y &lt;script>alert(1)&lt;/script>\n- Reward: `a<b`"
    )
    assert "<script>" not in table(["name", "value"], [[hostile, 1]])
