"""`rlhf`: the list of commands, and what a person sees when one fails. No torch until a command runs."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from rlhf.commands import COMMANDS
from rlhf.core.errors import RlhfError
from rlhf.distributed.processes import destroy, silence_other_ranks, wait_for_main
from rlhf.runs.disk import full_disk

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Environment variables that keep libraries from talking over a run; one that is set already stays."""

CHATTY = ("bitsandbytes", "torch._library.triton")
"""Loggers that report optional kernels a machine without a GPU does not have."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
INTERRUPTED = 130


class Commands(TyperGroup):
    """Knows every command by name and help line, and imports one when it is typed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the imported command in the place of its help line."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name and command else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error of ours becomes its message and its exit code, any other keeps its trace."""
        try:
            return super().invoke(ctx)
        except RlhfError as error:
            wait_for_main()
            _say("Error", str(error))
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if (fault := full_disk(error)) is None:
                raise
            _say("Error", str(fault))
            raise typer.Exit(fault.exit_code) from None
        except KeyboardInterrupt:
            _say("Interrupted", "nothing half-written was left behind; a run goes on with --resume")
            raise typer.Exit(INTERRUPTED) from None


def load_command(name: str) -> Any:
    """Import the command of this name."""
    module, _, function = COMMANDS[name].function.partition(":")
    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
    single.command(name)(getattr(importlib.import_module(module), function))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)


@app.callback()
def rlhf() -> None:
    """Reward models and aligned policies on one frozen base model.

    Each command explains itself: rlhf COMMAND --help.
    """


def main() -> None:
    """Run `rlhf` as typed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    silence_other_ranks()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app(prog_name="rlhf")
    except SystemExit as ending:
        if not ending.code:
            destroy()
        raise


def _say(title: str, text: str) -> None:
    from rlhf.runs.progress import close_live_lines

    close_live_lines()
    Console(stderr=True).print(
        Text.assemble((title, "bold red"), ": ", text), soft_wrap=True, highlight=False
    )


if __name__ == "__main__":
    main()
