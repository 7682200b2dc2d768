"""The output of `rlhf search --dry-run`."""

from __future__ import annotations

import shlex
from pathlib import Path

import optuna
from optuna.trial import TrialState

from rlhf.config.search import SearchConfig
from rlhf.search.attempt import command_words
from rlhf.search.results import ranked, read_results, summary, write_value
from rlhf.search.space import base_config, describe, read_space
from rlhf.search.storage import look_at_study, sampler


def plan(config: SearchConfig, place: Path) -> list[str]:
    """The space, the state of the study, and the next trial's command. Nothing is written.

    Raises:
        ConfigError: the config is invalid, or the storage cannot be used.
    """
    base_config(config)
    space = read_space(config, place)
    lines = [
        f"{config.objective.metric}: {config.objective.direction}, in {config.trials} trials of "
        f"{config.command}, over"
    ]
    lines += [f"  {name}: {describe(parameter)}" for name, parameter in config.parameters.items()]
    shared = look_at_study(config)
    trials = [] if shared is None else shared.study.get_trials(deepcopy=False)
    number = 0 if shared is None else len(shared.numbered())
    if shared is None:
        lines.append(f"The study {config.study!r} is new.")
    else:
        results = read_results(config, space, shared)
        lines += [f"The study {config.study!r} exists.", *summary(results)]
        if order := ranked(results):
            lines.append(f"Best: trial {order[0]['number']}, {write_value(order[0])}")
    if shared is not None and len(shared.trials()) >= config.trials:
        return [*lines, "No further trial would start."]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A copy in memory makes the same proposals as the study.
    copy = optuna.create_study(direction=config.objective.direction)
    copy.add_trials([trial for trial in trials if trial.state != TrialState.WAITING])
    copy.sampler = sampler(config.seed, number)
    words = [*command_words(config, space.words(space.propose(copy.ask()))), "--output"]
    return [
        *lines,
        f"The next new trial:\n{shlex.join([*words, str(config.output / 'trials' / str(number))])}",
    ]
