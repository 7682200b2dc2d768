"""No test reaches the network; and a tiny base, with a reward model on it, for the tests that need one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # tests of rlhf.config and rlhf.data run without torch
    from rlhf.core.chat import Chat

# Set before any library is imported, since most read them once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # or vLLM looks for the machine's address in the network
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",  # tiny models are no faster on two, and much slower on two that are busy
    }
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to this machine pass, any other one fails with its address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
        if host not in ("localhost", "::1", "0.0.0.0") and not str(host).startswith("127."):
            pytest.fail(f"a test tried to reach {address!r} over the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def write_tiny_base(folder: Path, seed: int) -> Path:
    """A Llama of two layers with random weights, and the embedded model's tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    from rlhf.core.embedded import embedded_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # ten times the usual: attention and next-token distributions far from uniform
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base", seed=0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_chat(tiny_base: Path) -> Chat:
    from rlhf.core.chat import Chat

    return Chat.load(tiny_base)


@pytest.fixture(scope="session")
def tiny_reward(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `final/` folder of a reward model on the tiny base: random adapter, random head, dropout while training."""
    import torch

    from reward.recipe import build_model
    from reward.save import save_final
    from rlhf.config.reward import RewardConfig

    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(tiny_base), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 4, "alpha": 8, "dropout": 0.5},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "regression", "regression_weight": 1}],
        }
    )
    model = build_model(config, tiny_chat)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("reward") / "final"
    save_final(config, model, tiny_chat, folder)
    return folder
