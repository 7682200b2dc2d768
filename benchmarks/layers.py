"""An update of a reward model with the layers of our own, beside the same update with PEFT's and transformers'.

    python benchmarks/layers.py

One process, one model: before each update the layers' forward passes are put in place (`rlhf/kernels/adapter_layers.py`, `rlhf/kernels/layers.py`,
`rlhf/kernels/last_layer.py`) or taken out again. Attention is ours throughout; `attention.py` compares that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import reward_training
import samples
from measuring import arguments, in_turns, line, parse, ratio, write_result

SIZES = {"limit": 2000, "longest": 512, "update": 16, "rounds": 5}
QUICK = {"limit": 60, "longest": 256, "update": 4, "rounds": 1}
BUDGET = 2048
WAYS: Mapping[str, tuple[bool, bool, bool, bool]] = {
    "PEFT's and transformers'": (False, False, False, False),
    "adapters ours": (True, False, False, False),
    "adapters, norms and rotations ours": (True, True, False, False),
    "and the last layer for the tokens that are read": (True, True, True, False),
    "and gates": (True, True, True, True),
}


def put_in_place(adapters: bool, norms: bool, last: bool, gates: bool) -> None:
    """Let models of Llama's kind in this process compute with these layers."""
    from peft.tuners.lora.layer import Linear
    from transformers.models.llama import modeling_llama
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb  # Llama's, word for word

    from rlhf.kernels import adapter_layers, last_layer, layers
    from rlhf.models import forwards

    norm: Any = modeling_llama.LlamaRMSNorm
    mlp: Any = modeling_llama.LlamaMLP
    Linear.forward = adapter_layers.adapted_forward if adapters else adapter_layers._forward  # noqa: SLF001
    norm.forward = layers._norm if norms else norm.stock_forward  # noqa: SLF001
    mlp.forward = layers._mlp if gates else mlp.stock_forward  # noqa: SLF001
    turn = layers.rotated if norms else apply_rotary_pos_emb
    modeling_llama.__dict__["apply_rotary_pos_emb"] = turn
    forwards.read_states = last_layer.read_states if last else last_layer.pick_states  # type: ignore[attr-defined]


def main() -> None:
    """Measure, print, write."""
    told = parse(arguments(__doc__))
    sizes = SIZES | (QUICK if told.quick else {})
    from rlhf.models.chat import Chat

    items = samples.pairs(told.data, Chat.load(told.base), limit=sizes["limit"], longest=sizes["longest"])
    everything = [samples.sides_of(item) for item in items]
    pairs = [everything[place] for place in samples.updates_of(everything, sizes["update"], 1)[0]]
    shared = {"base": told.base, "clock": told.clock, "dtype": told.dtype, "longest": sizes["longest"]}
    update = reward_training.ours({**shared, "pairs": pairs})
    tokens = sum(len(ids) for pair in pairs for ids in pair)

    def rate(name: str) -> float:
        put_in_place(*WAYS[name])
        answer = update({"updates": [list(range(len(pairs)))], "tokens_per_batch": BUDGET})
        return tokens / float(answer["seconds"])

    for name in WAYS:
        rate(name)  # warms up
    rates = in_turns({name: functools.partial(rate, name) for name in WAYS}, sizes["rounds"])
    stock = rates[next(iter(WAYS))]
    lines = [line(f"Speed of an update, {name}", ratio(found, stock), "x") for name, found in rates.items()]
    write_result(told, "layers", lines, {"sizes": sizes, "useful_tokens": tokens, "rates": rates})


if __name__ == "__main__":
    main()
