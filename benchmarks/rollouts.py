"""Tokens a second of our engines: vLLM with and without an adapter, and transformers' `generate`, on the
same prompts.

    python benchmarks/rollouts.py

Every answer is as long as may be (no stop token ends it), so that all engines make the same number of
tokens; the adapter has random weights. Three processes take turns: vLLM with LoRA, which samples with the
adapter and without it; vLLM as it is without LoRA; and `generate` on the trainer's model, with the adapter.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measuring import CLOCKS, Handler, Side, arguments, in_turns, line, parse, ratio, serve, write_result
from samples import groups

LONGEST_PROMPT = 80
SIZES = {"prompts": 8, "samples": 4, "new_tokens": 96, "rounds": 9}
QUICK = {"prompts": 2, "samples": 2, "new_tokens": 8, "rounds": 1}


def adapted_model(options: Mapping[str, Any]) -> Any:
    """The base with a policy's adapter of random weights."""
    import torch

    from rlhf.models.loading import load_causal, lora_config, with_adapter

    model = with_adapter(
        load_causal(options["base"], revision=None, dtype=options["dtype"], quantization="none"),
        lora_config(rank=options["rank"], alpha=2.0 * options["rank"], dropout=0.0, targets="all-linear"),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
    return model


def vllm_side(options: Mapping[str, Any]) -> Handler:
    """Our engine; `lora` false takes the adapter's place out of it."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vllm is imported
    import vllm

    whole = vllm.LLM
    # Every answer to the full length; our engine makes its SamplingParams by this name when it is asked.
    vllm.SamplingParams = functools.partial(vllm.SamplingParams, ignore_eos=True)
    if not options["lora"]:
        vllm.LLM = functools.partial(without_lora, whole)
    from policy.rollouts.protocol import Sampling
    from policy.rollouts.vllm.arguments import EngineSettings
    from policy.rollouts.vllm.engine import VLLMEngine
    from rlhf.models.chat import Chat
    from rlhf.models.embedded import resolve_base

    chat = Chat.load(options["base"])
    settings = EngineSettings(
        resolve_base(options["base"]),
        revision=None,
        rank=options["rank"],
        max_model_len=LONGEST_PROMPT + options["new_tokens"],
        max_sequences=options["prompts"] * options["samples"],
        dtype=options["dtype"],
        quantization="none",
        memory_gib=0.5,
        gpu_memory_share=0.35,
        seed=0,
    )
    engine = VLLMEngine(settings, Sampling(options["new_tokens"], 1.0, ()), chat)
    if options["lora"]:
        engine.sync(adapted_model(options))
    request = engine.request
    generate = timed(engine, options)

    def answer(message: Mapping[str, Any]) -> Mapping[str, Any]:
        engine.request = request if message["adapter"] else None
        engine.engine.reset_prefix_cache()  # in training the prompts and the adapter are new each time
        return generate(message)

    return answer


def without_lora(make: Any, **settings: Any) -> Any:
    """vLLM without its LoRA layers."""
    return make(**{**settings, "enable_lora": False})


def transformers_side(options: Mapping[str, Any]) -> Handler:
    """transformers' `generate` on the model with its adapter, as our other engine runs it."""
    from policy.rollouts.protocol import Sampling
    from policy.rollouts.transformers_engine import TransformersEngine
    from rlhf.models.chat import Chat

    chat = Chat.load(options["base"])
    engine = TransformersEngine(Sampling(options["new_tokens"], 1.0, chat.stop_ids), chat)
    model = adapted_model(options)
    model.generation_config.min_new_tokens = options["new_tokens"]
    model.get_base_model().generation_config.min_new_tokens = options["new_tokens"]
    engine.sync(model)
    return timed(engine, options)


def timed(engine: Any, options: Mapping[str, Any]) -> Handler:
    """Answers a request by sampling; returns tokens a second."""
    from rlhf.models.chat import Chat

    chat = Chat.load(options["base"])
    data = Path(options["data"]) if options["data"] else None
    given = groups(
        data, chat, prompts=options["prompts"], samples=1, longest_prompt=LONGEST_PROMPT, longest_answer=8
    )
    ids = [prompt_ids(chat, prompt) for prompt in given]
    now = CLOCKS[options["clock"]]

    def sample(message: Mapping[str, Any]) -> Mapping[str, Any]:
        started = now()
        answers = engine.generate(ids, samples=options["samples"], seed=message["seed"])
        seconds = now() - started
        lengths = [len(rollout.completion_ids) for group in answers for rollout in group]
        return {"tokens_per_second": sum(lengths) / seconds, "tokens": sum(lengths)}

    return sample


def prompt_ids(chat: Any, prompt: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt of `samples.groups`."""
    from samples import as_prompts

    return list(chat.prompt_ids(as_prompts([prompt])[0].messages))


SIDES = {"vllm": vllm_side, "vllm-without-lora": vllm_side, "transformers": transformers_side}


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of each engine in each round; the first round warms up."""
    sizes = SIZES | (QUICK if options.quick else {})
    shared = {
        "base": options.base,
        "dtype": options.dtype,
        "rank": options.rank,
        "data": str(options.data) if options.data else None,
        "clock": options.clock,
        **sizes,
    }
    with ExitStack() as stack:
        side = {
            name: stack.enter_context(
                Side(__file__, name, {**shared, "lora": name == "vllm"}, options.output / "logs")
            )
            for name in SIDES
        }
        counts: set[int] = set()

        def rate(name: str, adapter: bool) -> float:
            answer = side[name].ask(adapter=adapter, seed=0)
            counts.add(answer["tokens"])
            return float(answer["tokens_per_second"])

        ways: dict[str, Callable[[], float]] = {
            "vLLM, adapter": lambda: rate("vllm", True),
            "vLLM, LoRA on, no adapter": lambda: rate("vllm", False),
            "vLLM without LoRA": lambda: rate("vllm-without-lora", False),
            "transformers, adapter": lambda: rate("transformers", True),
        }
        for way in ways.values():
            way()
        figures = in_turns(ways, sizes["rounds"])
        assert len(counts) == 1, f"the engines made different numbers of tokens: {counts}"
        return figures


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--rank", type=int, default=16)
    options = parse(parser)
    if options.side:
        serve(SIDES[options.side])
        return
    figures = measure(options)
    adapter = figures["vLLM, adapter"]
    bases = ("vLLM, LoRA on, no adapter", "vLLM without LoRA")
    # the faster one counts
    base = [max(pair) for pair in zip(*(figures[name] for name in bases), strict=True)]
    lines = [
        line("vLLM with an adapter beside the base alone", ratio(adapter, base), "x", least=0.85),
        line(
            "vLLM with an adapter beside transformers' generate",
            ratio(adapter, figures["transformers, adapter"]),
            "x",
            least=1.0,
        ),
        *(line(name, statistics.median(rates), "tokens/s") for name, rates in figures.items()),
    ]
    write_result(options, "rollouts", lines, {"tokens_per_second": figures, "rank": options.rank})


if __name__ == "__main__":
    main()
