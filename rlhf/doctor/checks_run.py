"""Checks of the run that a config describes: facts to results; none without a config."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.doctor.facts import EMBEDDED, MIB, Facts, Shape, Tokens, Trouble
from rlhf.doctor.results import Finding, size

FLOAT32 = 4
CHECKPOINTS = 3
"""Checkpoints on disk at a time: those kept, and the one being written."""
ADAM = 3
"""Values of a trained parameter in a checkpoint: itself and AdamW's two moments."""
LEAST_OUTPUT = 256 * MIB
EMBEDDED_BYTES = 270 * MIB
"""Size of the converted embedded model."""


def output_bytes(shape: Shape) -> int:
    """Peak bytes of a run folder: checkpoints, best weights and final weights, in float32."""
    return FLOAT32 * shape.trained * (CHECKPOINTS * ADAM + 2)


def base(facts: Facts) -> Iterator[Finding]:
    """Whether the base's config and weight files exist."""
    if facts.run is None:
        return
    found = facts.run.base
    if isinstance(found.shape, Trouble):
        hidden = found.hub is not None and not found.hub.cached and not found.hub.offline
        yield Finding("Base", "not checked" if hidden else "problem", found.shape.found, found.shape.fix)
    elif found.stored is not None and found.missing:
        missing = ", ".join(found.missing[:3]) + (
            f" and {len(found.missing) - 3} more" if len(found.missing) > 3 else ""
        )
        fix = f"copy or download {found.name} again"
        yield Finding("Base", "problem", f"weight files are missing: {missing}", fix)
    elif found.shape is not None:
        billions = f"{found.shape.parameters / 1e9:.3g} billion parameters"
        shown = " ".join([f"{found.name}: {billions}, context {found.shape.context:,}.", *found.shape.notes])
        yield Finding("Base", "ok", shown.removesuffix(".") if not found.shape.notes else shown)


def hub(facts: Facts) -> Iterator[Finding]:
    """Whether a base on the Hub is cached, or can be downloaded."""
    hub = facts.run.base.hub if facts.run else None
    if facts.run is None or hub is None:
        return
    name, token = facts.run.base.name, "with a token" if hub.token else "no token"
    if hub.cached:
        yield Finding("Hub", "ok", f"{name} is in the cache")
    elif hub.offline:
        fix = f"unset HF_HUB_OFFLINE, or `hf download {name}` where the Hub can be reached"
        yield Finding("Hub", "problem", f"{name} is not in the cache, and HF_HUB_OFFLINE is set", fix)
    elif isinstance(hub.answer, Trouble):
        yield Finding("Hub", "problem", f"{hub.answer.found} ({token})", hub.answer.fix)
    else:
        yield Finding("Hub", "ok", f"{name} can be downloaded: {size(hub.answer or 0)} of weights ({token})")


def length(facts: Facts) -> Iterator[Finding]:
    """Whether `model.max_length` is within the base's context."""
    if facts.run is None or not isinstance(facts.run.base.shape, Shape):
        return
    longest, context = facts.run.config.model.max_length, facts.run.base.shape.context
    if longest > context:
        found = f"model.max_length is {longest:,}, the base's context {context:,}"
        yield Finding("Length", "problem", found, f"model.max_length={context}")
    else:
        yield Finding("Length", "ok", f"{longest:,} of {context:,} tokens")


def tokenizer(facts: Facts) -> Iterator[Finding]:
    """Padding, stop ids, and the chat template."""
    tokens = facts.run.tokens if facts.run else None
    if facts.run is None:
        return
    if tokens is None:
        yield Finding("Tokenizer", "not checked", "the base is not on this machine")
    elif isinstance(tokens, Trouble):
        yield Finding("Tokenizer", "problem", tokens.found, tokens.fix)
    else:
        ends = (
            "is also a stop id; the attention mask separates the two" if tokens.pad_ends else "is no stop id"
        )
        yield Finding("Padding", "ok", f"{tokens.pad}, which {ends}")
        yield Finding("Stop ids", "ok", ", ".join(tokens.stops))
        date = facts.run.config.model.template_date
        dated = f"writes a date, pinned to {date}" if tokens.dated else "writes no date"
        # A policy uses the rule of its reward model.
        yield from _reasoning(getattr(facts.run.config, "reasoning", None), tokens)
        yield Finding(
            "Template", "ok", ". ".join([f"{dated}; hash {tokens.template_hash[:12]}…", *tokens.notes])
        )


def _reasoning(rule: str | None, tokens: Tokens) -> Iterator[Finding]:
    """How the template treats reasoning; nothing where it does not and no rule is set."""
    if not tokens.reasoning and rule in (None, "keep"):
        return
    found = (
        f"the template {', '.join(tokens.reasoning)}"
        if tokens.reasoning
        else "the template does not change it"
    )
    found += f"; the rule is {rule}" if rule else ""
    lost = rule == "keep" and any(
        effect.startswith("removes the reasoning of the answer") for effect in tokens.reasoning
    )
    fix = "reasoning=strip, or model.chat_template=FILE.jinja with a template that keeps it"
    yield Finding("Reasoning", "warning" if lost else "ok", found, fix if lost else "")


def sources(facts: Facts) -> Iterator[Finding]:
    """Whether each data source exists and its first rows can be used."""
    for source in facts.run.sources if facts.run else ():
        if source.read is None:
            yield Finding(
                "Data", "not checked", f"{source.name}: on the Hub", "`--dry-run` downloads and reads it"
            )
        elif isinstance(source.read, Trouble):
            yield Finding("Data", "problem", f"{source.name}: {source.read.found}", source.read.fix)
        else:
            read, kept = source.read
            found = f"{source.name}: {kept:,} of the first {read:,} rows can be used"
            few = kept < read / 2
            yield Finding(
                "Data", "warning" if few else "ok", found, "`--dry-run` lists the reasons" if few else ""
            )


def output(facts: Facts) -> Iterator[Finding]:
    """Whether the output folder is free."""
    if facts.run is None:
        return
    path = facts.run.output.path
    if not facts.run.output.write:
        yield Finding("Output", "problem", f"{path} cannot be written to", "--output DIR")
    elif facts.run.holds == "a run":
        yield Finding(
            "Output", "warning", f"{path} holds a run", "--resume to continue it, or another --output"
        )
    elif facts.run.holds == "something else":
        yield Finding("Output", "problem", f"{path} is not empty and is not a run folder", "another --output")
    else:
        yield Finding("Output", "ok", f"{path} is free")


def output_disk(facts: Facts) -> Iterator[Finding]:
    """Disk space for checkpoints and final weights."""
    if facts.run is None:
        return
    shape, free = facts.run.base.shape, facts.run.output.free
    need = max(output_bytes(shape) if isinstance(shape, Shape) else 0, LEAST_OUTPUT)
    fix = "free some, or --output on another disk"
    if free < need:
        yield Finding(
            "Disk", "problem", f"{size(free)} free at {facts.run.output.path}, {size(need)} needed", fix
        )
    elif free < 2 * need:
        found = (
            f"{size(free)} free at {facts.run.output.path}, {size(need)} needed: a second run would fill it"
        )
        yield Finding("Disk", "warning", found, fix)
    else:
        yield Finding("Disk", "ok", f"{size(free)} free at {facts.run.output.path}, {size(need)} needed")


def cache_disk(facts: Facts) -> Iterator[Finding]:
    """Disk space for the base's files, where they are not cached yet."""
    if facts.run is None:
        return
    base, cache = facts.run.base, facts.run.cache
    need = EMBEDDED_BYTES if base.name == EMBEDDED and base.stored is None else 0
    if base.hub is not None and not base.hub.cached and isinstance(base.hub.answer, int):
        need = base.hub.answer
    if not need:
        return
    found = f"{size(cache.free)} free at {cache.path}, {size(need)} of weights to download"
    variable = "RLHF_CACHE" if base.name == EMBEDDED else "HF_HOME"
    if not cache.write:
        yield Finding("Cache", "problem", f"{cache.path} cannot be written to", f"export {variable}=FOLDER")
    elif cache.free < need:
        yield Finding("Cache", "problem", found, f"free some, or export {variable}=FOLDER on another disk")
    else:
        yield Finding("Cache", "ok", found)


def trained(facts: Facts) -> Iterator[Finding]:
    """Whether the reward models of the config are complete, with this base and template."""
    if facts.run is None:
        return
    base, tokens = facts.run.config.model.base, facts.run.tokens
    for model in facts.run.trained:
        if isinstance(model.card, Trouble):
            yield Finding(model.key, "problem", model.card.found, model.card.fix)
        elif isinstance(tokens, Tokens) and model.card["template_hash"] != tokens.template_hash:
            date, kwargs = (
                model.card["template_date"],
                model.card.get("chat_template_kwargs", "{}"),
            )
            found = (
                f"{model.folder} was trained with another chat template, date or other options: "
                f"{date}, {kwargs}"
            )
            fix = (
                f"model.template_date={date!r} model.chat_template_kwargs={kwargs!r} "
                f"model.chat_template={model.folder}/chat_template.jinja"
            )
            yield Finding(model.key, "problem", found, fix)
        elif model.card["base"] != base:
            found = (
                f"{model.folder} was trained on {model.card['base']}, model.base is {base}: the run "
                "compares their weights"
            )
            fix = f"model.base={model.card['base']}, unless the weights are the same"
            yield Finding(model.key, "warning", found, fix)
        else:
            yield Finding(model.key, "ok", f"{model.folder}: complete, same base, same template")


def servers(facts: Facts) -> Iterator[Finding]:
    """Whether the rollout servers answer, and serve this base with a sufficient context."""
    for server in facts.run.servers if facts.run else ():
        if isinstance(server.length, Trouble):
            yield Finding("Rollouts", "problem", server.length.found, server.length.fix)
        else:
            yield Finding("Rollouts", "ok", f"{server.url} serves the base, up to {server.length:,} tokens")
