"""The command line `rlhf`: dispatches commands and prints their errors. Imports no torch until a command
runs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from rlhf import __version__
from rlhf.commands import COMMANDS, PLACES
from rlhf.core.errors import ConfigError, RlhfError, StoppedError
from rlhf.core.places import expand
from rlhf.distributed.processes import destroy, lost_process, silence_other_ranks, wait_for_main
from rlhf.runs.disk import file_system_error
from rlhf.runs.gpu_memory import memory_error
from rlhf.runs.signals import TerminatedError, end_cleanly_on_sigterm
from rlhf.startup import prepare

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
INTERRUPTED = 130
RESUME_NOTE = "no partial files were left behind; --resume continues a training run"


class Commands(TyperGroup):
    """The group of all commands, which imports a command when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command and use it in place of its help entry."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name and command else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an `RlhfError` becomes its message and exit code, any other error keeps its
        traceback."""
        try:
            return super().invoke(ctx)
        except RlhfError as error:
            wait_for_main()
            _print_error("Stopped" if isinstance(error, StoppedError) else "Error", str(error))
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            known = file_system_error(error) or lost_process(error) or memory_error(error)
            if known is None:
                raise
            wait_for_main()
            _print_error("Error", str(known))
            raise typer.Exit(known.exit_code) from None
        except KeyboardInterrupt:
            _print_error("Interrupted", RESUME_NOTE)
            raise typer.Exit(INTERRUPTED) from None
        except TerminatedError:
            _print_error("Terminated", RESUME_NOTE)
            raise


def load_command(name: str) -> Any:
    """Import the command of this name."""
    module, _, function = COMMANDS[name].function.partition(":")
    loaded = getattr(importlib.import_module(module), function)
    if isinstance(loaded, typer.Typer):  # a group of commands, such as `rlhf annotate serve`
        for registered in loaded.registered_commands:
            assert registered.callback is not None  # every command is registered with its function
            registered.callback = with_paths(registered.callback)
        return typer.main.get_group(loaded)
    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
    single.command(name)(with_paths(loaded))
    return typer.main.get_command(single)


def with_paths(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with `~` and `$VAR` expanded in its paths: shells do not expand them in `--output=~/x`."""

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        return command(**{name: _expanded(name, value) for name, value in values.items()})

    return expanded


def _expanded(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(name, item) for item in value]
    is_path = isinstance(value, Path)
    if not is_path and not (isinstance(value, str) and name in PLACES):
        return value
    try:
        text = expand(str(value))
    except ValueError as error:
        raise ConfigError(
            f"command line: {name.strip('_')}: {error}", fix="export the variable, or write the whole path"
        ) from None
    return Path(text) if is_path else text


def show_version(wanted: bool) -> None:
    """Print the versions of this project and of the libraries that results depend on."""
    if not wanted:
        return
    from rlhf.runs.environment import versions

    typer.echo(
        "\n".join([f"rlhf {__version__}", *(f"{name} {version}" for name, version in versions().items())])
    )
    raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)


@app.callback()
def rlhf(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Print versions and exit."),
    ] = False,
) -> None:
    """Train reward models and align policies on one frozen base model.

    Help for a command: rlhf COMMAND --help
    """


def main() -> None:
    """Entry point of the `rlhf` command."""
    prepare()
    silence_other_ranks()
    end_cleanly_on_sigterm()
    try:
        app(prog_name="rlhf")
    except SystemExit as exit_:
        if not exit_.code:
            destroy()
        raise


def _print_error(title: str, text: str) -> None:
    from rlhf.runs.progress import close_live_lines

    close_live_lines()
    Console(stderr=True).print(
        Text.assemble((title, "bold red"), ": ", text), soft_wrap=True, highlight=False
    )


if __name__ == "__main__":
    main()
