"""Write the pages of the documentation site: those of this folder, and references generated from the code.

python docs/generate.py build/docs        # `make docs` runs this, then mkdocs
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from api_pages import write_api
from typer.testing import CliRunner

from rlhf.cli import app, load_command
from rlhf.commands import COMMANDS
from rlhf.config.dpo import DPOConfig
from rlhf.config.justifier import JustifierConfig
from rlhf.config.policy import PolicyConfig
from rlhf.config.policy_table import PolicyTableConfig
from rlhf.config.principle import PrincipleConfig
from rlhf.config.reading.explain import describe
from rlhf.config.reward import RewardConfig
from rlhf.config.search import SearchConfig

HERE = Path(__file__).parent
ROOT = HERE.parent
SCHEMAS = {
    "train-reward": RewardConfig,
    "train-principle": PrincipleConfig,
    "train-justifier": JustifierConfig,
    "align-policy": PolicyConfig,
    "train-dpo": DPOConfig,
    "policy-table": PolicyTableConfig,
    "search": SearchConfig,
}
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
"""A link to a file of the repository outside this folder."""


def command_line() -> Iterator[str]:
    """The page of all commands: the text of each `--help`."""
    yield "# Command line\n\nGenerated from `rlhf COMMAND --help`.\n"
    for name, command in COMMANDS.items():
        yield f"## rlhf {name}\n\n{command.help}\n\n```text\n{help_text(name)}\n```\n"
        for part in getattr(load_command(name), "commands", {}):
            yield f"### rlhf {name} {part}\n\n```text\n{help_text(name, part)}\n```\n"


def help_text(*names: str) -> str:
    """What `rlhf NAME ... --help` prints, at a fixed width."""
    result = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, [*names, "--help"])
    if result.exit_code:
        raise typer.Exit(result.exit_code)
    return result.output.strip("\n")


def config_keys() -> Iterator[str]:
    """The page of all config keys: type, default and description, as `--explain` prints them."""
    yield "# Config keys\n\nGenerated from the schema; `rlhf COMMAND --explain` prints the same.\n"
    for name, schema in SCHEMAS.items():
        head, *entries = re.split(r"\n(?=\S)", describe(schema))
        yield f"## {name}\n\n{head}\n"
        for entry in entries:
            key, colon, rest = entry.partition(": ")
            if not colon or " " in key:
                yield f"{entry}\n"
                continue
            kind, _, text = rest.partition("\n")
            yield f"`{key}`\n:   {escape(kind)}\n\n    {escape(' '.join(text.split()))}\n"


def escape(text: str) -> str:
    """Keep Markdown from reading a description as markup."""
    return re.sub(r"([*_<>\[\]|])", r"\\\1", text)


def page(text: str) -> str:
    """A page of this folder with links to other files of the repository as plain paths."""
    return OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2].replace('../', '', 1)}`)", text)


def write(folder: Path) -> None:
    """Write the whole source of the site into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "reference").mkdir(parents=True)
    for file in sorted(HERE.iterdir()):
        if file.suffix == ".md":
            (folder / file.name).write_text(page(file.read_text("utf-8")), "utf-8")
        elif file.suffix in (".css", ".png", ".svg"):
            shutil.copy(file, folder / file.name)
    (folder / "reference" / "command-line.md").write_text("\n".join(command_line()), "utf-8")
    write_api(folder, page((HERE / "api.md").read_text("utf-8")))
    (folder / "reference" / "config.md").write_text("\n".join(config_keys()), "utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "](")
    (folder / "changelog.md").write_text(changelog, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
