from __future__ import annotations

import base64
from pathlib import Path

from rlhf.report.comparisons.comparison import write_comparison


def test_the_page_holds_all_it_needs_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    picture.write_text("<svg/>")
    page = write_comparison(
        tmp_path,
        title="A & B",
        lead=["Short.", "Longer <b>."],
        pictures=[picture],
        tables={"One": [["name", "value"], ["<i>x</i>", "1"]], "Two": [["name"], ["y"]]},
    )
    text = page.read_text()
    assert page == tmp_path / "report.html"
    assert base64.b64encode(b"<svg/>").decode() in text
    assert '<th scope="row">&lt;i&gt;x&lt;/i&gt;</th><td>1</td>' in text and "<i>x</i>" not in text
    assert "A &amp; B" in text and "Longer &lt;b&gt;." in text
    assert text.count("<table>") == 2 and "http" not in text.replace("http-equiv", "")
