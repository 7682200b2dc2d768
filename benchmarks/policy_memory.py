"""Peak memory of a policy's run: ours, TRL's RLOOTrainer with a separate reward model, and four separate
models.

    python benchmarks/policy_memory.py

The peaks are resident sets of whole processes, libraries included: `rlhf align-policy` with vLLM, which
holds a copy of the base and its cache, and with transformers' `generate` on the model it trains; TRL's
trainer, which can only do the latter here, with the micro-batch that is fastest and with the smallest; and
policy, reference, reward and critic each with a base of its own, as PPO is often run, for one update
without any sampling. Prompts, answers, adapter and base are the same for all.

What our roles add is read off torch's own account of the blocks it hands out: training the policy alone, on
rewards that are given and without a reference, against the same update with the reference and the reward
model, and with PPO's critic, on a whole base and on one in 4 bits.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import policy_sides
import policy_update
from measuring import Handler, Side, arguments, line, parse, serve, write_result

SIZES: dict[str, Any] = {
    "answers": 32,
    "longest_prompt": 128,
    "new_tokens": 128,
    "micro": 8,
    "lean_micro": 2,
    "tokens_per_batch": 512,
    "steps": 2,
    "role_answers": 8,
    "role_tokens": 48,
}
QUICK = {
    "answers": 8,
    "longest_prompt": 80,
    "new_tokens": 16,
    "micro": 4,
    "lean_micro": 2,
    "tokens_per_batch": 512,
    "steps": 1,
    "role_answers": 4,
    "role_tokens": 8,
}
GROUP = 4
ROLES: Mapping[str, Any] = {
    "alone": {"name": "rloo"},
    "rloo": {"name": "rloo"},
    "ppo": {"name": "ppo", "epochs": 1, "unfinished": "keep"},
}
"""What is trained: the policy alone, with reference and reward, and with a critic too."""

QUANTIZATIONS = ("none", "nf4")


def whole(options: Mapping[str, Any]) -> Handler:
    """TRL's trainer with its own sampling."""
    return policy_sides.theirs({**options, "engine": "transformers"})


def four(options: Mapping[str, Any]) -> Handler:
    """Policy, reference, reward and critic, each on a base of its own; one update in padded batches."""
    import torch
    from torch.nn import functional

    from rlhf.config.schema import AdapterConfig
    from rlhf.models.chat import Chat
    from rlhf.models.loading import load_causal, load_classifier, lora_config, with_adapter

    chat = Chat.load(options["base"])
    base = {"revision": None, "dtype": options["dtype"], "quantization": "none"}
    lora = AdapterConfig().model_dump()
    policy = with_adapter(load_causal(options["base"], **base), lora_config(**lora))
    reference = load_causal(options["base"], **base)
    reward = policy_sides.trl_reward(options, chat)
    critic = with_adapter(
        load_classifier(options["base"], attributes=["value"], pad_id=chat.pad_id, **base),
        lora_config(**lora, head=True),
    )
    optimizer = torch.optim.AdamW(
        [p for model in (policy, critic) for p in model.parameters() if p.requires_grad]
    )
    from samples import as_rollouts

    rollouts = [answer for group in as_rollouts(options["given"], chat) for answer in group]

    def logps(model: Any, ids: Any, mask: Any, width: int) -> Any:
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width + 1).logits[:, :-1]
        return -functional.cross_entropy(logits.float().transpose(1, 2), ids[:, -width:], reduction="none")

    def update(_: Mapping[str, Any]) -> Mapping[str, Any]:
        for first in range(0, len(rollouts), options["micro"]):
            some = rollouts[first : first + options["micro"]]
            prompts = chat.tokenizer.pad(
                {"input_ids": [list(item.prompt_ids) for item in some]},
                padding_side="left",
                return_tensors="pt",
            )
            answers = chat.tokenizer.pad(
                {"input_ids": [list(item.completion_ids) for item in some]},
                padding_side="right",
                return_tensors="pt",
            )
            ids = torch.cat([prompts["input_ids"], answers["input_ids"]], dim=1)
            mask = torch.cat([prompts["attention_mask"], answers["attention_mask"]], dim=1)
            width = answers["input_ids"].shape[1]
            with torch.autocast("cpu", torch.bfloat16, enabled=options["dtype"] == "bfloat16"):
                with torch.no_grad():
                    reference_logps = logps(reference, ids, mask, width)
                    rewards = reward(input_ids=ids, attention_mask=mask).logits[:, :1]
                (rewards * (logps(policy, ids, mask, width) - reference_logps)).mean().backward()
                hidden = critic.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
                values = critic.get_base_model().score(hidden[:, -width:]).squeeze(-1)
                (values - rewards).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {}

    return update


def roles(options: Mapping[str, Any]) -> Handler:
    """Bytes of one of our updates over what is there at its start, by torch's account; and of what the
    roles weigh."""
    from plan_vs_measured import peak_of_step

    from policy.rewards.protocol import RewardResult
    from rlhf.models.chat import Chat

    trainer = policy_sides.our_trainer(options, Chat.load(options["base"]))
    module: Any = importlib.import_module("policy.training.epochs")
    measured, last = module.token_logps, dict[str, Any]()

    def remembered(*args: Any) -> Any:
        outputs = measured(*args)
        last["logps"] = outputs[0].detach()
        return outputs

    stubs: dict[str, Any] = {"token_logps": remembered}
    if options["alone"]:
        answers = sum(len(prompt["answers"]) for prompt in options["given"])
        trainer.rewards = SimpleNamespace(
            of=lambda *_: RewardResult([float(place % 3) for place in range(answers)])
        )
        stubs["reference_logps"] = lambda *_: last["logps"]  # no second pass

    def update(_: Mapping[str, Any]) -> Mapping[str, Any]:
        weights = dict.fromkeys(("base", "default", "reward", "critic"), 0)
        gradients = 0
        for name, parameter in trainer.model.named_parameters():
            kind = next((kind for kind in weights if f".{kind}." in name), "base")
            weights[kind] += parameter.untyped_storage().nbytes()
            if parameter.requires_grad and kind != "default":
                gradients += parameter.numel() * 4
        with mock.patch.multiple(module, **stubs):
            peak = peak_of_step(trainer)
        return {"peak_of_step": peak, "weights": weights, "critic_gradients": gradients}

    return update


SIDES = {"trl": whole, "four": four, **dict.fromkeys((f"roles-{name}" for name in ROLES), roles)}


def align_policy(options: argparse.Namespace, sizes: Mapping[str, Any], reward: Path, engine: str) -> int:
    """Peak bytes of the command itself, in a process of its own."""
    source: dict[str, Any] = {"path": "demo"}
    if options.data:
        from samples import PROMPT_SOURCES

        source = {"path": str(options.data / "prompts.jsonl.gz"), "where": dict(PROMPT_SOURCES), "limit": 400}
    config = {
        "output": tempfile.mkdtemp() + "/run",
        "reward": str(reward),
        "model": {"base": options.base, "max_length": sizes["longest_prompt"] + sizes["new_tokens"]},
        "data": {"prompts": [source], "max_prompt_tokens": sizes["longest_prompt"]},
        "rollouts": {
            "engine": engine,
            "prompts_per_step": sizes["answers"] // GROUP,
            "samples_per_prompt": GROUP,
            "max_new_tokens": sizes["new_tokens"],
        },
        "algorithm": {"name": "rloo"},
        "steps": sizes["steps"],
        "tokens_per_batch": sizes["tokens_per_batch"],
        "evaluation": {"prompts": 2, "samples": 1},
    }
    file = options.output / "logs" / "policy_memory.yaml"
    file.write_text(json.dumps(config))
    with (options.output / "logs" / "policy_memory-ours.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlhf.cli", "align-policy", str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"rlhf align-policy failed: see {log.name}")
    return int(used.ru_maxrss) * 1024


def role_lines(
    options: argparse.Namespace, sizes: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What reference, reward and critic add to training the policy alone, beyond adapters and heads."""
    lines, details = [], dict[str, Any]()
    for quantization in QUANTIZATIONS:
        name = options.dtype if quantization == "none" else "NF4"
        reward = policy_sides.reward_model(options.base, options.output, quantization)
        figures = {}
        for role, algorithm in ROLES.items():
            shared = policy_update.side_options(
                options,
                {**sizes, "answers": sizes["role_answers"], "new_tokens": sizes["role_tokens"]},
                GROUP,
                reward=str(reward),
                quantization=quantization,
                alone=role == "alone",
                algorithm=algorithm,
                tokens_per_batch=512,
            )
            with Side(__file__, f"roles-{role}", shared, options.output / "logs") as side:
                figures[role] = side.ask()
        alone = figures["alone"]
        trained = alone["weights"]["base"] + alone["weights"]["default"] + alone["peak_of_step"]
        for role, who in {"rloo": "reference and reward", "ppo": "reference, reward and critic"}.items():
            more = figures[role]["peak_of_step"] - figures[role]["critic_gradients"] - alone["peak_of_step"]
            lines.append(
                line(
                    f"{name}: what {who} add beside adapters, heads and their gradients",
                    100 * more / trained,
                    "%",
                    most=5,
                )
            )
        details[name] = figures
    return lines, details


def whole_runs(
    options: argparse.Namespace, sizes: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The peaks of whole processes."""
    (options.output / "logs").mkdir(parents=True, exist_ok=True)
    reward = policy_sides.reward_model(options.base, options.output)
    peaks = {engine: align_policy(options, sizes, reward, engine) for engine in options.engines}
    for name, side, micro in (
        ("trl", "trl", sizes["micro"]),
        ("lean", "trl", sizes["lean_micro"]),
        ("four", "four", sizes["micro"]),
    ):
        shared = policy_update.side_options(options, sizes, GROUP, micro=micro)
        with Side(__file__, side, shared, options.output / "logs") as process:
            peaks[name] = process.ask()["peak"]
    gib = {name: peak / 2**30 for name, peak in peaks.items()}
    lines = []
    for engine in options.engines:
        who = f"Peak of align-policy, rollouts by {engine}"
        lines += [
            line(f"{who}: beside TRL with a separate reward model", gib[engine] / gib["trl"], "x", most=0.6),
            line(f"{who}: beside TRL at its smallest micro-batch", gib[engine] / gib["lean"], "x"),
            line(f"{who}: beside four separate models", gib[engine] / gib["four"], "x"),
            line(who, gib[engine], "GiB", note=f"{sizes['tokens_per_batch']} tokens a batch"),
        ]
    lines += [
        line(
            "Peak of TRL, rollouts by transformers",
            gib["trl"],
            "GiB",
            note=f"{sizes['micro']} answers a micro-batch",
        ),
        line(
            "Peak of TRL at its smallest micro-batch",
            gib["lean"],
            "GiB",
            note=f"{sizes['lean_micro']} answers",
        ),
        line(
            "Peak of four separate models, without rollouts",
            gib["four"],
            "GiB",
            note=f"{sizes['micro']} answers",
        ),
    ]
    return lines, {"peak_bytes": peaks}


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--engines", nargs="+", default=["vllm", "transformers"], help="of align-policy")
    options = parse(parser)
    if options.side:
        serve(SIDES[options.side])
        return
    sizes = SIZES | (QUICK if options.quick else {})
    lines, details = whole_runs(options, sizes)
    more, behind = role_lines(options, sizes)
    write_result(options, "policy_memory", lines + more, {"sizes": sizes, **details, "roles": behind})


if __name__ == "__main__":
    main()
