"""vLLM's pooling runner on an exported classifier gives our rewards, without a key for its activation."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from reward.export import export_reward
from reward.save import save_final
from reward.scorer import Scorer
from reward.training.build import build_model
from reward.training.data import load_chat
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")

TALKS = [
    (Message("user", "Name a colour."), Message("assistant", answer))
    for answer in ("Blue.", "I do not know.", "Green " * 20)
]
PROGRAM = """
import json, sys
import vllm

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
engine = vllm.LLM(
    folder, runner="pooling", dtype="float32", max_model_len=256, enforce_eager=True,
    kv_cache_memory_bytes=2**27, max_num_seqs=4, max_num_batched_tokens=512, disable_log_stats=True,
)
given = [{"prompt_token_ids": ids} for ids in prompts]
raw = vllm.PoolingParams(use_activation=False)
print("RESULT", json.dumps({
    "as it comes": [out.outputs.probs for out in engine.classify(given, use_tqdm=False)],
    "raw": [out.outputs.probs for out in engine.classify(given, pooling_params=raw, use_tqdm=False)],
}))
"""


@pytest.fixture
def reward_model(tiny_base: Path, tmp_path: Path) -> Path:
    """A random reward model on a base with attention heads of 64 units, which vLLM's CPU kernels ask for."""
    config = LlamaConfig.from_pretrained(tiny_base, head_dim=64, num_attention_heads=2, num_key_value_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    settings = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(tmp_path / "base"), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 4},
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "ratings", "regression_weight": 1}],
        }
    )
    chat = load_chat(settings)
    model = build_model(settings, chat)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    save_final(settings, model, chat, tmp_path / "final")
    return tmp_path / "final"


@pytest.mark.slow
def test_vllm_gives_the_same_rewards(reward_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_reward(reward_model, folder, TALKS, dtype="float32", reward_only=True)
    scorer = Scorer.load(reward_model)
    rewards = [score.reward for score in scorer.score(TALKS)]
    assert max(rewards) - min(rewards) > 0.1 and not all(0 <= reward <= 1 for reward in rewards)
    prompts = json.dumps([scorer.chat.conversation_ids(talk) for talk in TALKS])
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    # A process of its own: vLLM keeps what it takes until the process ends.
    words = [sys.executable, "-c", PROGRAM, str(folder), prompts]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    for given in json.loads(line.removeprefix("RESULT")).values():
        # float32 on both sides, other kernels.
        assert [item for (item,) in given] == pytest.approx(rewards, abs=1e-3)
