"""What a search would do, without doing it."""

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


def plan(told: SearchConfig, place: Path) -> list[str]:
    """The space, the state of the study, and the next trial's command. Nothing is written.

    Raises:
        ConfigError: something told cannot be right, or the storage cannot be used.
    """
    base_config(told)
    space = read_space(told, place)
    lines = [
        f"{told.objective.metric}: {told.objective.direction}, in {told.trials} trials of {told.command}, over"
    ]
    lines += [f"  {name}: {describe(one)}" for name, one in told.parameters.items()]
    shared = look_at_study(told)
    trials = [] if shared is None else shared.study.get_trials(deepcopy=False)
    number = 0 if shared is None else len(shared.numbered())
    if shared is None:
        lines.append(f"The study {told.study!r} is new.")
    else:
        results = read_results(told, space, shared)
        lines += [f"The study {told.study!r} is there.", *summary(results)]
        if order := ranked(results):
            lines.append(f"Best: trial {order[0]['number']}, {write_value(order[0])}")
    if shared is not None and len(shared.trials()) >= told.trials:
        return [*lines, "No further trial would start."]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A copy in memory proposes what the study itself would.
    copy = optuna.create_study(direction=told.objective.direction)
    copy.add_trials([trial for trial in trials if trial.state != TrialState.WAITING])
    copy.sampler = sampler(told.seed, number)
    words = [*command_words(told, space.words(space.propose(copy.ask()))), "--output"]
    return [
        *lines,
        f"The next new trial:\n{shlex.join([*words, str(told.output / 'trials' / str(number))])}",
    ]
