"""Write an adapter as a model folder: weights, tokenizer and what a reader must know of its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.schema import ModelConfig
from rlhf.distributed import processes
from rlhf.models.chat import Chat
from rlhf.models.embedded import absolute_base
from rlhf.models.loading import PeftModel, base_of, fingerprint
from rlhf.models.names import POLICY
from rlhf.runs.checkpoints import trainable_state
from rlhf.runs.files import atomic_folder


def base_facts(config: ModelConfig, model: Any, chat: Chat) -> dict[str, Any]:
    """What identifies the base, its number format, its layers and its chat template."""
    return {
        "base": absolute_base(config.base),
        "revision": config.revision,
        "fingerprint": fingerprint(base_of(model)),
        "dtype": config.dtype,
        "quantization": config.quantization,
        "fast_layers": config.fast_layers,
        **chat.card(),
    }


def write_adapter_folder(
    folder: Path, model: PeftModel, chat: Chat, files: Callable[[], Mapping[str, str]]
) -> None:
    """Write the trained adapter, tokenizer and further text files.

    The folder gets its name only when complete. All processes must call.

    Args:
        files: makes the texts by file name; called in the main process.
    """
    weights = trainable_state(model, everywhere=False)

    def write() -> None:
        with atomic_folder(folder) as unfinished:
            model.save_pretrained(
                str(unfinished),
                selected_adapters=[POLICY],
                state_dict=weights,
                save_embedding_layers=False,  # not trained; "auto" would ask the Hub for the base's config
            )
            chat.save_tokenizer(unfinished)
            for name, text in files().items():
                (unfinished / name).write_text(text, encoding="utf-8")

    processes.on_main(write)
