"""The documentation: links resolve, commands and configs exist, overrides are keys, Python compiles."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import rlhf
from rlhf.cli import load_command
from rlhf.commands import COMMANDS
from rlhf.config.load import load_config
from rlhf.config.reading.either import schema_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        *(ROOT / name for name in ("README.md", "benchmarks/README.md", "configs/README.md")),
    ]
)
BY_NAME = {str(page.relative_to(ROOT)): page for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")

NOT_CHECKED = {
    "accelerate": "needs several GPUs; its `-m rlhf.cli` part is checked",
    "cp": "copies files for the lines after it",
    "curl": "needs a server that runs",
    "docker": "builds an image",
    "echo": "writes a file for the next line",
    "export": "sets a variable",
    "for": "a loop over lines that are checked",
    "done": "its end",
    "hf": "needs the Hub",
    "make": "the target's existence is checked",
    "mkdir": "makes a folder for the next line",
    "mlflow": "a tracker's own command",
    "tensorboard": "a tracker's own command",
    "trackio": "a tracker's own command",
    "wandb": "a tracker's own command",
    "pip": "needs a network",
    "python": "the script's existence is checked",
    "sbatch": "needs a cluster",
    "sky": "needs a cloud account",
    "source": "activates the environment",
    "until": "waits for a server",
    "vllm": "needs vLLM on a GPU",
    "VAR": "an assignment",
}
"""First words of command lines that are not rlhf's, and why they are not executed."""


def test_prose_is_within_110_characters() -> None:
    """Tables, images and code may be longer."""
    long = [
        f"{name}:{number}"
        for name, page in [*BY_NAME.items(), *((name, ROOT / name) for name in ("AGENTS.md", "CHANGELOG.md"))]
        for number, line in prose(page)
        if len(line) > 110 and not line.startswith(("|", "!"))
    ]
    assert long == []


@pytest.mark.parametrize(
    ("name", "limit", "tables"), [("README.md", 900, True), ("benchmarks/README.md", 500, False)]
)
def test_a_page_is_short(name: str, limit: int, tables: bool) -> None:
    """As `wc -w` counts; of the benchmarks without tables and code."""
    text = BY_NAME[name].read_text("utf-8")
    if not tables:
        text = "\n".join(line for _, line in prose(BY_NAME[name]) if not line.startswith("|"))
    assert len(text.split()) <= limit


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines outside fenced code, with their numbers."""
    fenced = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            yield text


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of each line of shell in a page; blocks whose first word is no command are output or
    formulas."""
    for text in blocks(page, "", "sh", "bash", "shell"):
        lines = text.replace("\\\n", " ").splitlines()
        first = next((line.split()[0] for line in lines if line.strip() and not line.startswith("#")), "")
        if first.removeprefix(".venv/bin/") not in {"rlhf", *NOT_CHECKED}:
            continue
        for line in lines:
            if line.strip() and "'\n" not in line:
                try:
                    yield shlex.split(line.replace("$(", "(").strip(), comments=True)
                except ValueError:  # a text in quotes over several lines, as curl's body
                    break


@functools.cache
def command(name: str) -> click.Command:
    loaded = load_command(name)
    assert isinstance(loaded, click.Command) or hasattr(loaded, "params")
    return loaded  # type: ignore[no-any-return]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", BY_NAME)
def test_links_resolve(name: str) -> None:
    page = BY_NAME[name]
    text = FENCE.sub("", page.read_text("utf-8"))
    for label, link, image in LINK.findall(text):
        target, _, anchor = (link or image).partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name}: {link or image}"
        if anchor:
            assert anchor in anchors(file), f"{name}: {link}"
        if file.suffix == ".py" and re.fullmatch(r"`\w+`", label):
            symbol = re.escape(label.strip("`"))
            defined = re.search(
                rf"^(def|class) {symbol}\b|^{symbol}\b.*=", file.read_text("utf-8"), re.MULTILINE
            )
            assert defined, f"{name}: {target} does not define {label}"


@pytest.mark.parametrize("name", BY_NAME)
def test_commands_parse(name: str) -> None:
    for words in command_lines(BY_NAME[name]):
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        if not words:
            continue
        first = words[0].removeprefix(".venv/bin/")
        if "rlhf.cli" in words:
            launch = words[words.index("--config_file") + 1]
            assert (ROOT / launch).is_file(), f"{name}: {launch}"
            words, first = words[words.index("rlhf.cli") :], "rlhf"
        if first == "rlhf":
            check_command(name, words[1:])
        elif first == "make":
            targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
            assert words[1] in targets, f"{name}: {words}"
        elif first == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{name}: {words}"
        else:
            assert first in NOT_CHECKED, f"{name}: say in NOT_CHECKED why {first!r} is not executed: {words}"


def check_command(page: str, words: list[str]) -> None:
    where = f"{page}: rlhf {' '.join(words)}"
    if words[0] == "COMMAND":
        return
    assert words[0] in COMMANDS, where
    at: Any = command(words[0])
    if hasattr(at, "commands") and len(words) > 1 and not words[1].startswith("-"):
        assert words[1] in at.commands, where
        at = at.commands[words[1]]
    flags = {flag for parameter in at.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flags |= {"--help", "-h"}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.split("=")[0] in flags, f"{where}: no option {word}"
        if re.match(r"^configs/.*\.yaml$", word):
            assert (ROOT / word).is_file(), f"{where}: no file {word}"
    config = ROOT / words[1] if len(words) > 1 else ROOT
    overrides = [word for word in words[2:] if re.match(r"^[a-z_.0-9]+=", word) and "$" not in word]
    if words[0] in ("train-reward", "align-policy") and config.is_file() and overrides:
        load_config(config, schema_of(config), overrides)


@pytest.mark.parametrize("name", BY_NAME)
def test_python_compiles_and_yaml_parses(name: str) -> None:
    for text in blocks(BY_NAME[name], "python"):
        compile(text, name, "exec")
        for imported in re.findall(r"^from rlhf import (.+)$", text, re.MULTILINE):
            for public in imported.split(", "):
                assert public in rlhf.__all__, f"{name}: rlhf has no public {public}"
    for text in blocks(BY_NAME[name], "yaml"):
        yaml.safe_load(text)


def test_the_api_page_lists_every_public_name_once() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (stable|experimental) \| `([\w.]+)` \|", text, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(rlhf.__all__)
    for name, _, module in rows:
        assert getattr(rlhf, name).__module__ == module


def test_every_public_name_has_a_reference_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    pages = importlib.import_module("api_pages")
    text = (ROOT / "docs/api.md").read_text("utf-8")
    made = pages.api_pages(text)
    assert sorted(made) == sorted(rlhf.__all__)
    for name, page in made.items():
        assert re.search(r"^\*\*(Stable|Experimental)\*\*: ", page, re.MULTILINE), name
        assert inspect.getdoc(getattr(rlhf, name)).splitlines()[0] in page  # type: ignore[union-attr]
    assert "answer(\n    self,\n    prompts: Sequence[str | Conversation],\n" in made["SharedBase"]
    assert "policy: str | None = None," in made["SharedBase"]
    linked = set(re.findall(r"\(reference/api/(\w+)\.md\)", pages.with_links(text)))
    assert linked == set(made)


def test_snippets_of_losses_run() -> None:
    text = (ROOT / "docs/api.md").read_text("utf-8")
    (snippet,) = [block for _, block in FENCE.findall(text) if "leave_one_out(" in block]
    values: dict[str, Any] = {}
    exec(snippet, values)
    assert values["advantages"].tolist() == [[-1.5, 0.0, 1.5]]  # each less the mean of the other two


def test_every_quoted_message_is_one_of_ours() -> None:
    files = [file for room in ("rlhf", "reward", "policy") for file in (ROOT / room).rglob("*.py")]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text("utf-8") for file in files))
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    for quoted in (text for row in rows for text in re.findall(r"`([^`]+)`", row)):
        assert all(part in source for part in quoted.split(" ... ")), quoted


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f": {page.name}\n" in navigation, f"{page.name} is not in mkdocs.yml"
