"""Write the plans of `configs/` into the heads of the files and into `configs/README.md`, between markers.

python -m rlhf.plan.catalogue            # tests compare
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.reading.either import load_either
from rlhf.plan.changes import best_strategy, fits
from rlhf.plan.defaults import chosen
from rlhf.plan.gpus import GIB, PRICES_OF, parse_gpus
from rlhf.plan.memory.phases import (
    Phase,
    Tracer,
    check_shares,
    engine_of,
    host_bytes,
    phases,
    tightest,
    with_servers,
)
from rlhf.plan.memory.shapes import load_shape
from rlhf.plan.report import gib
from rlhf.plan.request import Assumptions, Request
from rlhf.plan.speed import Bill, bill, percent
from rlhf.plan.speed import between as shown
from rlhf.runs.files import atomic_write_text

BEGIN, END = "<plan>", "</plan>"
WIDTH = 108


@dataclass(frozen=True)
class Planned:
    """A config and the GPUs it is planned for."""

    config: str
    """Its name below `configs/`, without the ending."""
    gpus: str
    rollout_gpus: str | None = None
    parallel: str = "auto"


PLANNED = (
    Planned("reward/llama-3.1-8b-24gb", "1xRTX4090"),
    Planned("reward/llama-3.1-8b-24gb", "2xRTX4090"),
    Planned("reward/llama-3.1-8b", "1xL40S"),
    Planned("reward/llama-3.1-8b", "1xH100"),
    Planned("reward/llama-3.1-8b", "8xH100"),
    Planned("reward/llama-3.1-8b", "4x8xH100"),
    Planned("reward/nemotron-70b-24gb", "1xRTX4090", parallel="fsdp-offload"),
    Planned("reward/nemotron-70b-24gb", "2xRTX4090", parallel="fsdp-offload"),
    Planned("reward/nemotron-70b-48gb", "1xL40S"),
    Planned("reward/nemotron-70b-80gb", "1xH100"),
    Planned("reward/nemotron-70b-lora", "8xH100"),
    Planned("reward/nemotron-70b-lora", "4x8xH100"),
    Planned("reward/helpsteer3-8b", "1xH100"),
    Planned("reward/helpsteer3-70b", "8xH100"),
    Planned("policy/llama-3.1-8b-24gb", "1xRTX4090"),
    Planned("policy/llama-3.1-8b-24gb", "2xRTX4090"),
    Planned("policy/llama-3.1-8b-48gb", "1xL40S"),
    Planned("policy/llama-3.1-8b", "1xH100"),
    Planned("policy/llama-3.1-8b", "8xH100"),
    Planned("policy/llama-3.1-8b", "4x8xH100"),
    Planned("policy/nemotron-70b-24gb", "1xRTX4090", "4xRTX4090", "fsdp-offload"),
    Planned("policy/nemotron-70b-24gb", "2xRTX4090", "4xRTX4090", "fsdp-offload"),
    Planned("policy/nemotron-70b-24gb", "1xL40S", "2xL40S", "fsdp-offload"),
    Planned("policy/nemotron-70b-1x80gb", "1xH100"),
    Planned("policy/nemotron-70b-80gb", "1xH100", "1xH100"),
    Planned("policy/nemotron-70b", "4xH100", "4xH100"),
    Planned("policy/nemotron-70b-4nodes", "2x8xH100", "2x8xH100"),
)
"""From small GPUs to large ones, in the order of the table."""

SHARED = {"one": "one GPU", "ddp": "DDP", "fsdp": "FSDP2", "fsdp-offload": "FSDP2, offloaded"}
LAUNCH = {"ddp": "ddp.yaml", "fsdp": "fsdp2.yaml", "fsdp-offload": "fsdp2-qlora.yaml"}
"""How the work is shared: the file of `configs/launch/` for it."""


@dataclass(frozen=True)
class Entry:
    """One plan of the catalogue."""

    planned: Planned
    request: Request
    phases: list[Phase]
    bill: Bill
    parallel: int
    host_bytes: int

    @property
    def options(self) -> str:
        """What to type after the config."""
        servers = f" --rollout-gpus {self.request.servers}" if self.request.servers else ""
        how = f" --parallel {self.planned.parallel}" if self.planned.parallel != "auto" else ""
        return f"--gpus {self.request.cluster}{servers}{how}"

    def line(self) -> str:
        """The plan in a line, for the head of a config."""
        capacity, sizes = self.request.cluster.gpu.memory, []
        for phase in self.phases:
            of = "" if phase.capacity == capacity else f" of {phase.capacity / GIB:.1f}"
            sizes.append(f"{phase.name} {gib(phase.total)}{of}")
        rates = [f"{speed.name} {speed.tokens_per_second:,.0f}" for speed in self.bill.phases]
        each = self.parallel
        servers = f", servers on {each} GPU{'s' if each > 1 else ''} each" if self.request.servers else ""
        verdict = "fits" if fits(self.phases) else "DOES NOT FIT"
        host = f" {gib(self.host_bytes)} GiB of host memory." if self.host_bytes else ""
        return (
            f"{self.options} ({SHARED[self.request.strategy]}{servers}): {verdict}. "
            f"GiB of {capacity / GIB:.1f}: {', '.join(sizes)}.{host} "
            f"Tokens/s at best: {', '.join(rates)}. {self.cost()}."
        )

    def row(self) -> str:
        """The plan in a row of the table."""
        worst, servers = tightest(self.request, self.phases), self.request.servers
        cells = (
            f"{self.request.cluster}" + (f" + {servers} for rollouts" if servers else ""),
            f"`{self.planned.config}.yaml`",
            self.shared(),
            "yes" if fits(self.phases) else "NO",
            f"{gib(worst.total)} of {worst.capacity / GIB:.1f}, {worst.name}",
            *self.costs(),
        )
        return f"| {' | '.join(cells)} |"

    def shared(self) -> str:
        """How the GPUs share the work, and with which launch file."""
        how = self.request.strategy
        return SHARED[how] + (f", `launch/{LAUNCH[how]}`" if how in LAUNCH else "")

    def cost(self) -> str:
        """Hours and dollars of the run."""
        hours, dollars = self.costs()
        return f"{hours} hours, ${dollars}"

    def costs(self) -> tuple[str, str]:
        """Hours and dollars, each a range; the GPUs have known prices."""
        total = self.bill
        ends = (total.hours, total.most_hours, total.dollars, total.most_dollars)
        least_h, most_h, least_d, most_d = (end or 0.0 for end in ends)
        return shown(least_h, most_h), shown(least_d, most_d, ",.0f")


class Catalogue:
    """Plans of the configs in a folder, each base traced by one tracer."""

    def __init__(self, configs: Path) -> None:
        self.configs = configs
        self._tracers: dict[str, Tracer] = {}

    def entry(self, planned: Planned) -> Entry:
        """Plan one config on its GPUs."""
        config = load_either(self.configs / f"{planned.config}.yaml")
        base = config.model.base
        tracer = self._tracers.setdefault(base, Tracer(load_shape(base)))
        cluster = parse_gpus(planned.gpus)
        check_shares(config, cluster)
        servers = parse_gpus(planned.rollout_gpus) if planned.rollout_gpus else None
        start = "one" if cluster.count == 1 else "ddp"
        strategy = start if planned.parallel == "auto" else planned.parallel
        request = with_servers(Request(config, cluster, strategy, servers), tracer)
        if planned.parallel == "auto":
            request = best_strategy(request, tracer)
        request, _ = chosen(request, tracer)
        costs, engine = bill(request, tracer, Assumptions()), engine_of(request, tracer)
        assert costs is not None  # the GPUs above have known prices
        parallel = engine.parallel if engine else 1
        return Entry(planned, request, phases(request, tracer), costs, parallel, host_bytes(request, tracer))

    def head(self, config: str) -> Iterator[str]:
        """The plans of a config, as comments."""
        peak = percent(Assumptions().utilisation)
        yield f"# {BEGIN} `rlhf plan` with these options: traced without weights, at {peak} of peak FLOP/s."
        for planned in PLANNED:
            if planned.config == config:
                line = self.entry(planned).line()
                yield from textwrap.wrap(line, WIDTH, initial_indent="# ", subsequent_indent="#   ")
        yield f"# {END}"

    def table(self) -> Iterator[str]:
        """All plans, for the page."""
        assumed = Assumptions()
        yield f"<!-- {BEGIN} written by `python -m rlhf.plan.catalogue` -->"
        yield textwrap.fill(
            f"Memory is that of the fullest GPU, in GiB. Hours and dollars of a whole run are estimates, at "
            f"{percent(assumed.utilisation)} of the data sheet's peak and the prices of `rlhf/plan/gpus.py` "
            f"({PRICES_OF}), for {assumed.item_tokens:,} tokens a pair or rated response, "
            f"{assumed.prompt_tokens} a prompt, {assumed.answer_tokens} an answer.",
            WIDTH,
            break_on_hyphens=False,
        )
        yield ""
        yield "| GPUs | config | strategy | fits | peak | hours | $ |"
        yield "| --- | --- | --- | --- | --- | ---: | ---: |"
        for planned in PLANNED:
            yield self.entry(planned).row()
        yield f"<!-- {END} -->"


def between(text: str, lines: Iterator[str]) -> str:
    """Replace the block between the markers, inclusive; a config without markers gets them at its top."""
    block = "\n".join(lines) + "\n"
    pattern = re.compile(rf"^[^\n]*{BEGIN}.*?{END}[^\n]*\n", flags=re.DOTALL | re.MULTILINE)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text, count=1)
    comments = re.match(r"(#[^\n]*\n)*", text)
    assert comments is not None
    return text[: comments.end()] + block + text[comments.end() :]


def files(configs: Path) -> Iterator[tuple[Path, str]]:
    """Every file that holds plans, and what it should be."""
    catalogue = Catalogue(configs)
    for name in dict.fromkeys(planned.config for planned in PLANNED):
        file = configs / f"{name}.yaml"
        yield file, between(file.read_text("utf-8"), catalogue.head(name))
    page = configs / "README.md"
    yield page, between(page.read_text("utf-8"), catalogue.table())


if __name__ == "__main__":
    for file, text in files(Path("configs")):
        atomic_write_text(file, text)
        print(f"Wrote {file}.")
