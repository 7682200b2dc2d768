"""Checks of the run that a config describes: facts in, lines out; nothing where there is no config."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.doctor.checks_machine import cards
from rlhf.doctor.facts import EMBEDDED, MIB, Facts, Run, Shape, Tokens, Torch, Trouble
from rlhf.doctor.results import Result, size
from rlhf.plan import weights

FLOAT32 = 4
CHECKPOINTS = 3
"""Checkpoints on disk at a time: those that are kept, and the one that is being written."""
ADAM = 3
"""Numbers a trained parameter has in a checkpoint: itself and AdamW's two moments."""
LEAST_OUTPUT = 256 * MIB
EMBEDDED_BYTES = 270 * MIB
"""The embedded model as it is converted into the cache."""
ALL_TRAINED = "in float32: trained, frozen, gradients and AdamW's two moments"
BUSY = 0.7
"""Share of the memory above which what a step computes will hardly fit beside the weights."""


def base_bytes(shape: Shape, dtype: str, quantization: str) -> int:
    """The base in memory: embeddings and head are never in 4 bits."""
    return weights.base_bytes(shape.parameters, shape.linear, dtype, quantization)


def output_bytes(shape: Shape) -> int:
    """What a run leaves at its fullest: checkpoints, the best weights so far, and the final ones, in float32."""
    return FLOAT32 * shape.trained * (CHECKPOINTS * ADAM + 2)


def base(facts: Facts) -> Iterator[Result]:
    """Whether the base is there, by its config and its weight files."""
    if facts.run is None:
        return
    found = facts.run.base
    if isinstance(found.shape, Trouble):
        hidden = found.hub is not None and not found.hub.cached and not found.hub.offline
        yield Result("Base", "not checked" if hidden else "problem", found.shape.found, found.shape.fix)
    elif found.stored is not None and found.missing:
        shown = ", ".join(found.missing[:3]) + (
            f" and {len(found.missing) - 3} more" if len(found.missing) > 3 else ""
        )
        fix = f"copy or download {found.name} again"
        yield Result("Base", "problem", f"weight files are missing: {shown}", fix)
    elif found.shape is not None:
        billions = f"{found.shape.parameters / 1e9:.3g} billion parameters"
        said = " ".join([f"{found.name}: {billions}, context {found.shape.context:,}.", *found.shape.notes])
        yield Result("Base", "ok", said.removesuffix(".") if not found.shape.notes else said)


def hub(facts: Facts) -> Iterator[Result]:
    """Of a base by its Hugging Face name: in the cache, or reachable."""
    said = facts.run.base.hub if facts.run else None
    if facts.run is None or said is None:
        return
    name, token = facts.run.base.name, "a token is there" if said.token else "no token is there"
    if said.cached:
        yield Result("Hub", "ok", f"{name} is in the cache")
    elif said.offline:
        fix = f"unset HF_HUB_OFFLINE, or `hf download {name}` where the Hub can be reached"
        yield Result("Hub", "problem", f"{name} is not in the cache, and HF_HUB_OFFLINE is set", fix)
    elif isinstance(said.answer, Trouble):
        yield Result("Hub", "problem", f"{said.answer.found} ({token})", said.answer.fix)
    else:
        yield Result("Hub", "ok", f"{name} can be downloaded: {size(said.answer or 0)} of weights ({token})")


def length(facts: Facts) -> Iterator[Result]:
    """Whether the longest conversation fits into the base's context."""
    if facts.run is None or not isinstance(facts.run.base.shape, Shape):
        return
    longest, context = facts.run.config.model.max_length, facts.run.base.shape.context
    if longest > context:
        found = f"model.max_length is {longest:,}, the base's context {context:,}"
        yield Result("Length", "problem", found, f"model.max_length={context}")
    else:
        yield Result("Length", "ok", f"{longest:,} of {context:,} tokens")


def tokenizer(facts: Facts) -> Iterator[Result]:
    """Padding, ends of an answer, and the template's date."""
    said = facts.run.tokens if facts.run else None
    if facts.run is None:
        return
    if said is None:
        yield Result("Tokenizer", "not checked", "it comes with the base, which is not here")
    elif isinstance(said, Trouble):
        yield Result("Tokenizer", "problem", said.found, said.fix)
    else:
        ends = "also ends an answer; a mask tells the two apart" if said.pad_ends else "ends no answer"
        yield Result("Padding", "ok", f"{said.pad}, which {ends}")
        yield Result("Stop ids", "ok", ", ".join(said.stops))
        date = facts.run.config.model.template_date
        dated = f"writes a date, pinned to {date}" if said.dated else "writes no date"
        # A policy follows the rule of its reward model.
        yield from _reasoning(getattr(facts.run.config, "reasoning", None), said)
        yield Result("Template", "ok", ". ".join([f"{dated}; hash {said.template_hash[:12]}…", *said.notes]))


def _reasoning(rule: str | None, tokens: Tokens) -> Iterator[Result]:
    """What the template does with reasoning, where it does anything."""
    if not tokens.reasoning and rule in (None, "keep"):
        return
    found = (
        f"the template {', '.join(tokens.reasoning)}" if tokens.reasoning else "the template leaves it alone"
    )
    found += f"; the rule is {rule}" if rule else ""
    lost = rule == "keep" and any(
        effect.startswith("removes the reasoning of the answer") for effect in tokens.reasoning
    )
    fix = "reasoning=strip, or model.chat_template=FILE.jinja with a template that keeps it"
    yield Result("Reasoning", "warning" if lost else "ok", found, fix if lost else "")


def memory(facts: Facts) -> Iterator[Result]:
    """Whether the weights fit: in a card, or without one in the machine's memory."""
    if facts.run is None or (facts.torch is None and facts.host.nvidia):
        return
    base = _weights(facts.run)
    if base is None:
        return
    trainer = _trainer(facts.run, base)
    rollouts = getattr(facts.run.config, "rollouts", None)
    engine = rollouts is not None and rollouts.engine == "vllm"
    if isinstance(facts.torch, Torch) and facts.torch.gpus:
        if facts.run.planned:
            yield _planned(facts.run)
            return
        share = rollouts.gpu_memory_share if rollouts is not None and engine else 0.0
        card = min(card.memory for card in facts.torch.gpus)
        yield _card_memory(trainer, base, card, share, cards(facts))
        return
    need, there = trainer + (base if engine else 0), facts.host.memory
    copies = " in two copies" if engine else ""
    if trainer != base:
        copies = f" ({ALL_TRAINED}" + (", and the engine's copy)" if engine else ")")
    found = f"{size(need)} of weights{copies}, {size(there)} of memory"
    fix = f"a smaller base, {'an adapter' if trainer != base else 'model.quantization=nf4'}, or a larger machine"
    if need > there:
        yield Result("Memory", "problem", found, fix)
    elif need > BUSY * there:
        yield Result("Memory", "warning", f"{found}: little is left for the steps", fix)
    else:
        yield Result("Memory", "ok", found)


def _planned(run: Run) -> Result:
    """The plan's tightest phase on these GPUs: the same arithmetic as `rlhf plan`."""
    worst = max(run.planned, key=lambda phase: (bool(phase.trouble), phase.total - phase.memory))
    found = f"{worst.name} needs {size(worst.total)} of {size(worst.memory)} (rlhf plan)"
    if worst.trouble or worst.total > worst.memory:
        why = f": {worst.trouble}" if worst.trouble else ""
        return Result("GPU memory", "problem", f"{found}{why}", f"rlhf plan CONFIG --gpus {run.gpus}")
    return Result("GPU memory", "ok", found)


def loading(facts: Facts) -> Iterator[Result]:
    """Whether the machine's own memory holds what loading the base takes, with GPUs: every process reads for itself."""
    if facts.run is None or not facts.host.nvidia:
        return
    base = _weights(facts.run)
    if base is None:
        return
    host, quantization = facts.host, facts.run.config.model.quantization
    need = weights.loading_bytes(
        base, quantization, sharded=host.sharded, offloaded=host.offloaded, processes=host.processes
    )
    if not need:
        return
    found = f"loading takes up to {size(need)} in {host.processes} process{'es' if host.processes > 1 else ''}, {size(host.memory)} of memory"
    if need > host.memory:
        fix = "accelerate launch --config_file configs/launch/fsdp2.yaml, fewer processes, or a machine with more memory"
        yield Result("Loading", "problem", found, fix)
    else:
        yield Result("Loading", "ok", found)


def _card_memory(need: int, served: int, card: int, share: float, count: int) -> Result:
    """Weights of trainer and engine in one card; sharding over several is for `rlhf plan` to say."""
    trainer, engine = (1 - share) * card, share * card
    whole = f" ({ALL_TRAINED})" if need != served else ""
    found = f"{size(need)} of weights{whole}, {size(card)} on a card"
    if share:
        found += f", of which {share:.0%} is vLLM's (rollouts.gpu_memory_share)"
    fix = f"{'an adapter, FSDP2' if whole else 'model.quantization=nf4'}, or a larger card"
    if need > trainer or (share and served > engine):
        tight = "vLLM's copy does not fit" if share and served > engine else "the weights do not fit into one"
        return Result("GPU memory", "problem" if count == 1 else "warning", f"{found}: {tight}", fix)
    if need > BUSY * trainer or (share and served > 0.9 * engine):
        return Result("GPU memory", "warning", f"{found}: little is left for the steps", fix)
    return Result("GPU memory", "ok", found)


def _trainer(run: Run, base: int) -> int:
    """Bytes that a trainer holds between two passes: the base or, where all of it is trained, all that belongs to it."""
    if run.config.adapter is not None:
        return base
    known = run.base.shape
    parameters = (
        known.parameters if isinstance(known, Shape) else base / weights.BYTES[run.config.model.dtype]
    )
    return round(FLOAT32 * parameters * (2 + 1 + 2))


def _weights(run: Run) -> int | None:
    """Bytes of the base in memory: by its shape, or if that is not known by its files, which are in bfloat16."""
    model = run.config.model
    if isinstance(run.base.shape, Shape):
        return base_bytes(run.base.shape, model.dtype, model.quantization)
    if run.base.stored is None:
        return None
    share = weights.NF4_BYTES if model.quantization == "nf4" else weights.BYTES[model.dtype]
    return round(run.base.stored / weights.BYTES["bfloat16"] * share)


def sources(facts: Facts) -> Iterator[Result]:
    """Whether each data source is there and its first rows are of use."""
    for source in facts.run.sources if facts.run else ():
        if source.read is None:
            yield Result(
                "Data", "not checked", f"{source.name}: on the Hub", "`--dry-run` downloads and reads it"
            )
        elif isinstance(source.read, Trouble):
            yield Result("Data", "problem", f"{source.name}: {source.read.found}", source.read.fix)
        else:
            read, kept = source.read
            found = f"{source.name}: {kept:,} of the {read:,} rows looked at are of use"
            few = kept < read / 2
            yield Result("Data", "warning" if few else "ok", found, "`--dry-run` says why" if few else "")


def output(facts: Facts) -> Iterator[Result]:
    """Whether the output folder is free."""
    if facts.run is None:
        return
    path = facts.run.output.path
    if not facts.run.output.write:
        yield Result("Output", "problem", f"{path} cannot be written to", "--output DIR")
    elif facts.run.holds == "a run":
        yield Result(
            "Output", "warning", f"{path} holds a run", "--resume to go on with it, or another --output"
        )
    elif facts.run.holds == "something else":
        yield Result("Output", "problem", f"{path} holds something that is no run", "another --output")
    else:
        yield Result("Output", "ok", f"{path} is free")


def output_disk(facts: Facts) -> Iterator[Result]:
    """Room for checkpoints and what is left at the end."""
    if facts.run is None:
        return
    shape, free = facts.run.base.shape, facts.run.output.free
    need = max(output_bytes(shape) if isinstance(shape, Shape) else 0, LEAST_OUTPUT)
    fix = "free some, or --output on another disk"
    if free < need:
        yield Result(
            "Disk", "problem", f"{size(free)} free at {facts.run.output.path}, {size(need)} needed", fix
        )
    elif free < 2 * need:
        found = (
            f"{size(free)} free at {facts.run.output.path}, {size(need)} needed: a second run would fill it"
        )
        yield Result("Disk", "warning", found, fix)
    else:
        yield Result("Disk", "ok", f"{size(free)} free at {facts.run.output.path}, {size(need)} needed")


def cache_disk(facts: Facts) -> Iterator[Result]:
    """Room for the base's files, where they are yet to come."""
    if facts.run is None:
        return
    found, cache = facts.run.base, facts.run.cache
    need = EMBEDDED_BYTES if found.name == EMBEDDED and found.stored is None else 0
    if found.hub is not None and not found.hub.cached and isinstance(found.hub.answer, int):
        need = found.hub.answer
    if not need:
        return
    told = f"{size(cache.free)} free at {cache.path}, {size(need)} of weights to come"
    variable = "RLHF_CACHE" if found.name == EMBEDDED else "HF_HOME"
    if not cache.write:
        yield Result("Cache", "problem", f"{cache.path} cannot be written to", f"export {variable}=FOLDER")
    elif cache.free < need:
        yield Result("Cache", "problem", told, f"free some, or export {variable}=FOLDER on another disk")
    else:
        yield Result("Cache", "ok", told)


def trained(facts: Facts) -> Iterator[Result]:
    """Whether the reward model that the config names is whole, and of this base and template."""
    if facts.run is None:
        return
    model, tokens = facts.run.config.model, facts.run.tokens
    for one in facts.run.trained:
        if isinstance(one.card, Trouble):
            yield Result(one.key, "problem", one.card.found, one.card.fix)
        elif isinstance(tokens, Tokens) and one.card["template_hash"] != tokens.template_hash:
            date, kwargs = one.card["template_date"], one.card.get("chat_template_kwargs", "{}")
            found = (
                f"{one.folder} was trained with another chat template, or with another date or other options: "
                f"{date}, {kwargs}"
            )
            fix = (
                f"model.template_date={date!r} model.chat_template_kwargs={kwargs!r} "
                f"model.chat_template={one.folder}/chat_template.jinja"
            )
            yield Result(one.key, "problem", found, fix)
        elif one.card["base"] != model.base:
            found = f"{one.folder} was trained on {one.card['base']}, model.base is {model.base}: the run compares weights"
            yield Result(
                one.key, "warning", found, f"model.base={one.card['base']}, unless they are the same"
            )
        else:
            yield Result(one.key, "ok", f"{one.folder}: whole, same base, same template")


def servers(facts: Facts) -> Iterator[Result]:
    """Whether the rollout servers answer, and serve this base with room enough."""
    for one in facts.run.servers if facts.run else ():
        if isinstance(one.length, Trouble):
            yield Result("Rollouts", "problem", one.length.found, one.length.fix)
        else:
            yield Result("Rollouts", "ok", f"{one.url} serves the base, up to {one.length:,} tokens")
