"""The context of a base, read from its config before its weights are loaded."""

from __future__ import annotations

from transformers import AutoConfig

from rlhf.core.errors import ConfigError, ModelError
from rlhf.models.embedded import resolve_base


def require_context(base: str, revision: str | None, max_length: int) -> None:
    """Make sure that `model.max_length` is within the context of the base; a base without a limit takes any.

    Raises:
        ConfigError: it is beyond.
        ModelError: the base has no config that transformers can read.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_base(base, revision), revision=revision)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"The config.json of {base!r} cannot be read: {reason}") from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ConfigError(
            f"model.max_length is {max_length}.",
            allowed=f"at most {context}, the context of {base!r}",
            fix=f"model.max_length={context}",
        )
