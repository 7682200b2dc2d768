"""The study's storage: errors when it cannot be used, secrets in its URL, and results of another search."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError
from rlhf.search.space import read_space
from rlhf.search.storage import (
    attempts,
    existing_study,
    finished,
    hide_secrets,
    open_study,
    retry,
    sampler,
    trials_of,
)

Write = Callable[..., Path]
BASE = {"adapter": {"rank": 16}, "output": "unused"}


@pytest.fixture
def search_config(write_search: Write, tmp_path: Path) -> Callable[..., SearchConfig]:
    (tmp_path / "out").mkdir()
    return lambda **keys: load_config(write_search(**keys), SearchConfig)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("mysql://host/db?password=hunter2&ssl=on", "mysql://host/db?password=***&ssl=***"),
        ("postgresql://me:${PASSWORD}@host/db", "postgresql://me:***@host/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(
    search_config: Callable[..., SearchConfig], monkeypatch: pytest.MonkeyPatch, url: str, shown: str
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    search = search_config(storage=url)
    assert hide_secrets(url, search) == shown
    assert hide_secrets("login of hunter2 failed", search).count("hunter2") == ("sqlite" in url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "sqlite:////nowhere/at/all.db",
            "storage sqlite:////nowhere/at/all.db: ",
        ),
        ("nonsense", "storage nonsense: "),
        ("oracledb9://me:hunter2@host/db", "Can't load plugin: sqlalchemy.dialects:oracledb9"),
        ("postgresql://me:hunter2@host/db", "postgresql"),
        ("postgresql://me:${NOT_SET_HERE}@host/db", "NOT_SET_HERE"),
    ],
)
@pytest.mark.parametrize("use", [lambda search_config: open_study(search_config, BASE), existing_study])
def test_a_storage_that_cannot_be_used(
    search_config: Callable[..., SearchConfig], use: Callable[[SearchConfig], Any], url: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        use(search_config(storage=url))
    assert message in raised.value.found
    assert "hunter2" not in str(raised.value)


def test_a_secret_in_a_query_is_not_shown(search_config: Callable[..., SearchConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.db\?uri=\*\*\*: .*'\*\*\*'"):
        open_study(search_config(storage=f"sqlite:///{tmp_path}/a.db?uri=hunter2"), BASE)


def test_looking_creates_nothing(search_config: Callable[..., SearchConfig], tmp_path: Path) -> None:
    assert existing_study(search_config()) is None
    assert list((tmp_path / "out").iterdir()) == []
    assert existing_study(search_config(storage=f"sqlite:///{tmp_path}/elsewhere.db")) is None
    assert not (tmp_path / "elsewhere.db").exists()
    assert trials_of(open_study(search_config(study="another"), BASE)) == {}
    assert existing_study(search_config()) is None
    assert existing_study(search_config(study="another")) is not None


def with_a_trial(search: SearchConfig, place: Path) -> optuna.Study:
    study = open_study(search, BASE)
    read_space(search, place).propose(ask(study, search.seed))
    return study


def ask(study: optuna.Study, seed: int = 0) -> Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `ask` sends no heartbeat
        trial = study.ask()
    study.sampler = sampler(seed, len(attempts(study)) - 1)
    return trial


@pytest.mark.parametrize(
    ("keys", "base", "line"),
    [
        (
            {"objective": {"metric": "held_out.overall"}},
            BASE,
            'objective.metric: was "overall", is "held_out.overall"',
        ),
        (
            {"parameters": {"adapter.rank": {"low": 2, "high": 4}}},
            BASE,
            "parameters.adapter.rank.low: was absent, is 2.0",
        ),
        ({}, {**BASE, "adapter": {"rank": 8}}, "base.adapter.rank: was 16, is 8"),
        ({"pruning": {"metric": "loss/total"}}, BASE, "pruning: was null, is absent"),
    ],
)
def test_results_of_another_search_are_not_taken(
    search_config: Callable[..., SearchConfig],
    tmp_path: Path,
    keys: dict[str, Any],
    base: dict[str, Any],
    line: str,
) -> None:
    with_a_trial(search_config(), tmp_path).tell(0, 0.5)
    same = search_config(trials=99, seed=5, launch=[])
    assert len(trials_of(open_study(same, {**BASE, "output": "moved"}))) == 1
    with pytest.raises(ConfigError) as raised:
        open_study(search_config(**keys), base)
    assert line in raised.value.found


def test_before_any_result_a_changed_config_replaces_it(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    study = with_a_trial(search_config(), tmp_path)
    study.tell(0, state=TrialState.FAIL)
    retry()(study, study.get_trials()[0])

    def states(search: SearchConfig, base: dict[str, Any]) -> list[str]:
        return [trial.state.name for trial in trials_of(open_study(search, base)).values()]

    assert states(search_config(objective={"metric": "held_out.overall"}), BASE) == ["WAITING"]
    assert states(search_config(), {**BASE, "adapter": {"rank": 8}}) == ["FAIL"]
    with pytest.raises(ConfigError) as raised:
        open_study(search_config(objective={"metric": "overall", "direction": "minimize"}), BASE)
    assert 'objective.direction: was "maximize", is "minimize"' in raised.value.found


def test_a_retried_trial_keeps_its_number_and_its_values(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    search = search_config()
    study = with_a_trial(search, tmp_path)
    values = trials_of(study)[0].params
    with_a_trial(search, tmp_path)
    study.tell(0, state=TrialState.FAIL)
    retry()(study, study.get_trials()[0])
    assert finished(study) == 0
    assert [trial.state for trial in trials_of(study).values()] == [TrialState.WAITING, TrialState.RUNNING]
    repeated = ask(study)
    read_space(search, tmp_path).propose(repeated)
    assert (repeated.number, repeated.params, trials_of(study)[0].number) == (2, values, 2)
    study.tell(repeated, 0.5)
    surplus = ask(study)
    study.tell(surplus, state=TrialState.FAIL)
    assert list(trials_of(study)) == [0, 1]  # a trial that ended without values is none


def test_proposals_depend_on_seed_number_and_results_alone(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    search = search_config()
    space = read_space(search, tmp_path)

    def proposals(seed: int, reopen: bool) -> list[Any]:
        study = open_study(search_config(study=f"{seed} {reopen}"), BASE)
        for _ in range(14):  # the first ten are random, then the results guide
            if reopen:
                study = open_study(search_config(study=f"{seed} {reopen}"), BASE)
            trial = ask(study, seed)
            space.propose(trial)
            (value,) = trial.params.values()
            study.tell(trial, -abs(value - 1e-3))
        return [trial.params for trial in study.get_trials()]

    uninterrupted = proposals(0, False)
    assert uninterrupted == proposals(0, True)
    assert uninterrupted != proposals(1, False)
    assert len({next(iter(params.values())) for params in uninterrupted}) == len(uninterrupted)
