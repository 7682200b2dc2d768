"""Check the context length of a base by its config."""

from __future__ import annotations

from rlhf.core.errors import ConfigError
from rlhf.models.bases import read_config


def require_context(base: str, revision: str | None, max_length: int) -> None:
    """Require `model.max_length` within the context of the base, if it has a limit.

    Raises:
        ConfigError: it exceeds the context.
        ModelError: the base is an adapter, or has no config that transformers can read.
    """
    config = read_config(base, revision)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ConfigError(
            f"model.max_length is {max_length}.",
            allowed=f"at most {context}, the context of {base!r}",
            fix=f"model.max_length={context}",
        )
