"""An update of a reward model with the layers of our own, beside the same update with PEFT's and
transformers'.

    python benchmarks/layers.py

One process, one model: before each update the forward passes of its layers are bound
(`rlhf/kernels/adapter_layers.py`, `rlhf/kernels/layers.py`, `rlhf/kernels/last_layer.py`) or left to the
classes. Attention is ours throughout; `attention.py` compares that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import reward_sides
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


def put_in_place(adapters: bool, norms: bool, last: bool, gates: bool, *, model: Any) -> None:
    """Let a model compute with these layers, and by PEFT's and transformers' classes elsewhere."""
    from peft.tuners.lora.layer import Linear

    from rlhf.kernels import adapter_layers, last_layer, layers

    base = model.get_base_model()
    layers.enable(base)
    adapter_layers.enable(model)
    ours = {
        Linear.__name__: adapters,
        **dict.fromkeys(layers.NORMS, norms),
        **dict.fromkeys(layers.GATES, gates),
        **dict.fromkeys(last_layer.LAYERS, last),
    }
    for module in base.modules():
        kind = type(module).__name__
        if not ours.get(kind, norms if kind.endswith("Attention") else True):
            vars(module).pop("forward", None)


def main() -> None:
    """Measure, print, write."""
    options = parse(arguments(__doc__))
    sizes = SIZES | (QUICK if options.quick else {})
    from rlhf.models.chat import Chat

    items = samples.pairs(
        options.data, Chat.load(options.base), limit=sizes["limit"], longest=sizes["longest"]
    )
    everything = [samples.sides_of(item) for item in items]
    pairs = [everything[place] for place in samples.updates_of(everything, sizes["update"], 1)[0]]
    shared = {
        "base": options.base,
        "clock": options.clock,
        "dtype": options.dtype,
        "longest": sizes["longest"],
    }
    update = reward_sides.ours({**shared, "pairs": pairs})
    tokens = sum(len(ids) for pair in pairs for ids in pair)

    def rate(name: str) -> float:
        answer = update(
            {
                "updates": [list(range(len(pairs)))],
                "tokens_per_batch": BUDGET,
                "prepare": functools.partial(put_in_place, *WAYS[name]),
            }
        )
        return tokens / float(answer["seconds"])

    for name in WAYS:
        rate(name)  # warms up
    rates = in_turns({name: functools.partial(rate, name) for name in WAYS}, sizes["rounds"])
    stock = rates[next(iter(WAYS))]
    lines = [
        line(f"Speed of an update, {name}", ratio(figures, stock), "x") for name, figures in rates.items()
    ]
    write_result(options, "layers", lines, {"sizes": sizes, "useful_tokens": tokens, "rates": rates})


if __name__ == "__main__":
    main()
