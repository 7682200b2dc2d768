"""A run's algorithm in words: for a dry run, and for the card of a policy."""

from __future__ import annotations

from policy.kl import trl_beta
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.policy import PolicyConfig

EXAMPLE_KL = 0.05
"""Nats a token at which `abs` is compared with k1 in a dry run: their ratio is not the same everywhere."""
GRADIENTS = {
    "k1": "has a gradient that is zero in the mean: nothing pulls towards the reference",
    "abs": "has the gradient of the total variation, which does not shrink near the reference",
    "k3": "has the gradient of KL(reference, policy), not of KL(policy, reference)",
}
"""What is not the KL's own gradient."""


def describe_algorithm(algorithm: AlgorithmConfig, longest: int) -> list[str]:
    """The algorithm and its KL in words, and the KL's coefficient in TRL's convention."""
    kl = algorithm.kl
    length, nats = max(1, longest // 2), EXAMPLE_KL
    beta = trl_beta(kl.coefficient, kl.estimator, kl.reduction, length, nats)
    formula = "coefficient"
    if kl.reduction == "mean":
        formula += f" / L, for answers of L = {length} tokens (half of rollouts.max_new_tokens)"
    if kl.estimator == "abs":
        formula += (
            f", x 2 / sqrt(pi k), the mean of |d| over that of d, for a KL of k = {nats:g} nats a token"
        )
    compat = ", with NeMo-Aligner's slips" if algorithm.compat else ""
    lines = [
        f"Algorithm: {algorithm.name}{compat}; loss: {algorithm.reduction}; unfinished answers: {algorithm.unfinished}",
        f"KL penalty: {kl.coefficient:g} x {kl.reduction} of {kl.estimator} over an answer's tokens, in the {kl.placement}",
        f"In TRL's convention (beta x sum of k1, in the reward): beta = {beta:.3g} = {formula}",
    ]
    if kl.target is not None:
        lines.append(f"The coefficient is steered to a KL of {kl.target:g}, over {kl.horizon:g} answers")
    if kl.budget is not None:
        lines.append(f"The run ends where an answer's mean KL is beyond {kl.budget:g} nats")
    if kl.placement == "loss" and kl.estimator in GRADIENTS:
        lines.append(f"Note: in the loss, {kl.estimator} {GRADIENTS[kl.estimator]}")
    return lines


def card_text(config: PolicyConfig) -> str:
    """What README.md of a policy's folder says."""
    algorithm, kl = config.algorithm, config.algorithm.kl
    name = {"reinforce": "REINFORCE", "rloo": "RLOO"}[algorithm.name]
    return f"""---
base_model: {config.model.base}
library_name: peft
pipeline_tag: text-generation
---
# Aligned policy

A LoRA adapter trained for at most {config.steps} updates by {name} with a leave-one-out baseline over
{config.rollouts.samples_per_prompt} answers a prompt, against the reward model `{config.reward}`, with {kl.coefficient:g} x {kl.reduction} of
{kl.estimator} as KL penalty in the {kl.placement}. eval.json of the run holds reward, KL and length before and after, on held-out prompts.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)
```
"""
