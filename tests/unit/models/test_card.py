"""The template shared by all model cards, and the license of a base."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rlhf.config.schema import DataSource
from rlhf.models.card import is_hub_name, license_of, render_card, source_line


def test_metadata_and_sections(tmp_path: Path) -> None:
    text = render_card(
        base=str(tmp_path),
        task="text-generation",
        library="peft",
        title="A title: with {{ braces }}",
        summary="A summary with <b>signs</b> & more.",
        code="print({'a': 1})",
        sections={"Data": "- one\n- two", "Figures": ""},
        datasets=["owner/data", "demo", "./rows.jsonl", "owner/data"],
    )
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": str(tmp_path),
        "datasets": ["owner/data"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "aligned-policy"],
    }
    assert card.text.strip() == (
        "# A title: with {{ braces }}\n\nA summary with <b>signs</b> & more.\n\n"
        "## How to load\n\n```python\nprint({'a': 1})\n```\n\n## Data\n\n- one\n- two"
    )


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: llama3.1\n---\n# Base", "llama3.1"),
        ("# No metadata", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        (None, None),
    ],
)
def test_the_license_of_a_folder_is_that_of_its_card(
    tmp_path: Path, readme: str | None, expected: str | None
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert license_of(str(tmp_path)) == expected


def test_a_source_is_named_with_its_license_and_whether_it_is_synthetic() -> None:
    helpsteer = DataSource(path="nvidia/HelpSteer2", format="helpsteer2")
    assert source_line(helpsteer) == "nvidia/HelpSteer2 (helpsteer2, train); cc-by-4.0"
    assert source_line(DataSource(path="demo", format="helpsteer2")).startswith(
        "demo (helpsteer2, train); **synthetic**"
    )
    assert source_line(DataSource(path="a.jsonl")) == "a.jsonl (columns, train)"


def test_the_license_of_a_name() -> None:
    assert license_of("embedded") == "apache-2.0"
    assert license_of("nobody/has-this-in-a-cache") is None
    assert license_of("not a name/at/all") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/data", True),
        ("demo", False),
        ("a/b/c", False),
        ("/abs", False),
        ("./x", False),
        ("~/x", False),
    ],
)
def test_names_of_the_hub(name: str, expected: bool) -> None:
    assert is_hub_name(name) == expected


def test_a_file_of_that_name_is_not_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "data").touch()
    assert not is_hub_name("owner/data")
