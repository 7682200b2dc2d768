"""Fixtures: no network; a tiny base, a reward model on it, and configs of short runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # tests of rlhf.config and rlhf.data run without torch
    from typer.testing import Result

    from policy.training.trainer import PolicyTrainer
    from rlhf.core.records import Conversation, Rollout
    from rlhf.models.chat import Chat

# Set before any library is imported, since most read them once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # or vLLM looks up the machine's network address
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",  # two threads are no faster for tiny models, and much slower on busy cores
    }
)


def pytest_configure() -> None:
    """Give this process, and those that tests start, Python's SIGINT: a shell's background job ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow connections to this machine only; others fail with their address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
        if host not in ("localhost", "::1", "0.0.0.0") and not str(host).startswith("127."):
            pytest.fail(f"a test tried to reach {address!r} over the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def write_tiny_base(folder: Path, seed: int) -> Path:
    """Save a Llama of two layers with random weights and the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    from rlhf.models.embedded import embedded_model

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
        # Ten times the default, for attention and next-token distributions far from uniform.
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
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


@pytest.fixture
def refusing_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base with a chat template that refuses a conversation with a system prompt, or about war."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "refusing"))
    template = folder / "chat_template.jinja"
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% if 'war' in messages[0].content %}{{ raise_exception('No war') }}{% endif %}"
    )
    template.write_text(refuses + template.read_text())
    return folder


def randomise(model: Any, seed: int, scale: float = 0.2) -> None:
    """Set trained parameters to random values, so that adapter and head have an effect."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, scale, generator=generator))


@pytest.fixture(scope="session")
def tiny_chat(tiny_base: Path) -> Chat:
    from rlhf.models.chat import Chat

    return Chat.load(tiny_base)


@pytest.fixture(scope="session")
def tiny_reward(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `final/` folder of a reward model on the tiny base, with random adapter and head, and dropout."""
    from reward.save import save_final
    from reward.training.build import build_model
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
    randomise(model, seed=1)
    folder = tmp_path_factory.mktemp("reward") / "final"
    save_final(config, model, tiny_chat, folder)
    return folder


@pytest.fixture
def policy_trainer(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, tmp_path: Path
) -> Callable[..., PolicyTrainer]:
    """Build a policy trainer on the tiny base with a random adapter, fixed answers and fixed rewards."""
    from types import SimpleNamespace

    from policy.rewards.protocol import RewardResult
    from policy.training.build import build_trainer
    from rlhf.config.load import load_config
    from rlhf.config.policy import PolicyConfig
    from rlhf.core.records import Prompt

    def make(
        prompts: Sequence[Conversation],
        groups: list[list[Rollout]],
        rewards: Sequence[float],
        *overrides: str,
    ) -> PolicyTrainer:
        file = tmp_path / "policy.yaml"
        file.write_text(
            f"output: unused\nreward: {tiny_reward}\ndata: {{prompts: [{{path: demo}}]}}\n"
            "algorithm: {reduction: sequence_sum, kl: {estimator: k1, reduction: sum, coefficient: 0.05}}\n"
        )
        fixed = [
            f"model.base={tiny_base}",
            "model.dtype=float32",
            "adapter.rank=4",
            "rollouts.engine=transformers",
            f"rollouts.prompts_per_step={len(groups)}",
            f"rollouts.samples_per_prompt={len(groups[0])}",
            "data.max_prompt_tokens=200",
        ]
        config = load_config(file, PolicyConfig, [*fixed, *overrides])
        run: Any = SimpleNamespace(checkpoints=tmp_path / "checkpoints")
        trainer = build_trainer(config, tiny_chat, [Prompt(messages) for messages in prompts], run)
        engine: Any = SimpleNamespace(
            sync=lambda model: None, generate=lambda ids, samples, seed: groups, figures=dict
        )
        trainer.engine = engine
        reward: Any = SimpleNamespace(of=lambda prompts, rollouts: RewardResult(list(rewards)))
        trainer.rewards = reward
        randomise(trainer.model, seed=2, scale=0.1)
        trainer.state.global_step = 1  # at step 0 a new adapter is expected
        return trainer

    return make


@pytest.fixture
def rlhf_command() -> Callable[..., Result]:
    """Run `rlhf` with arguments, in this process."""
    from typer.testing import CliRunner

    from rlhf import cli

    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="rlhf")


@pytest.fixture(scope="session")
def reward_config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward run of two stages on the tiny base and a little synthetic data; takes seconds."""
    from rlhf.data.demo.dataset import demo_rows

    folder = tmp_path_factory.mktemp("configs")
    for kind, rows in (("helpsteer2", 80), ("helpsteer2-preference", 40)):
        some = itertools.islice(demo_rows(kind, "train"), rows)  # type: ignore[arg-type]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    file = folder / "reward.yaml"
    file.write_text(f"""
output: unused
model: {{base: {tiny_base}, dtype: float32, max_length: 400}}
adapter: {{rank: 4, alpha: 8, dropout: 0.1}}
data:
  ratings: [{{path: {folder}/helpsteer2.jsonl, format: helpsteer2}}]
  preferences: [{{path: {folder}/helpsteer2-preference.jsonl, format: helpsteer2-preference}}]
  validation_share: 0.2
stages:
  - {{name: ratings, regression_weight: 1.0, max_steps: 5, batch_size: 4, optimizer: {{warmup_steps: 2}}}}
  - {{name: pairs, preference_weight: 1.0, max_steps: 4, batch_size: 4,
     optimizer: {{schedule: cosine, warmup_steps: 1}}}}
head_start: 16
tokens_per_batch: 512
validate_every: 2
save_every: 2
""")
    return file


@pytest.fixture(scope="session")
def policy_config(tiny_base: Path, tiny_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy run of three updates on the tiny base and a little synthetic data; takes seconds."""
    file = tmp_path_factory.mktemp("configs") / "policy.yaml"
    file.write_text(f"""
output: unused
reward: {tiny_reward}
model: {{base: {tiny_base}, dtype: float32, max_length: 400}}
adapter: {{rank: 4, alpha: 8}}
data: {{prompts: [{{path: demo, limit: 60}}], max_prompt_tokens: 200}}
rollouts: {{engine: transformers, prompts_per_step: 2, samples_per_prompt: 3, max_new_tokens: 6}}
algorithm:
  {{reduction: sequence_sum, kl: {{estimator: k1, reduction: sum, coefficient: 0.05}}, unfinished: keep}}
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 0}}
steps: 3
save_every: 2
tokens_per_batch: 512
evaluation: {{prompts: 3, samples: 2}}
""")
    return file


@pytest.fixture(scope="session")
def fake_vllm() -> Any:
    """The module `fake_vllm` in this folder."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("fake_vllm", Path(__file__).parent / "fake_vllm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases in the format their config names, however slow.

    A processor that is slow in bfloat16 would compute in float32.
    """
    monkeypatch.setattr("rlhf.core.formats.slow_bfloat16", lambda: False)
