"""The study's storage: errors when it cannot be used, secrets in its URL, and results of another search."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import Trial, TrialState

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError
from rlhf.search.folder import write_config
from rlhf.search.space import read_space
from rlhf.search.storage import SharedStudy, look_at_study, open_study, shown_url

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
        ("mysql://host/db?password=hunter2&ssl=1", "mysql://host/db?..."),
        ("postgresql://me:${PASSWORD}@host/db", "postgresql://me:***@host/db"),
        ("${STORAGE}", "${STORAGE}"),
        ("hunter2", "(not a URL)"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_the_written_config_keeps_no_secret(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    write_config(search_config(storage="postgresql://me:hunter2@host/db?sslpassword=hunter2"))
    text = (tmp_path / "out" / "config.yaml").read_text()
    assert "hunter2" not in text
    assert yaml.safe_load(text)["storage"] == "postgresql://me:***@host/db?..."


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "sqlite:////nowhere/at/all.db",
            "storage sqlite:////nowhere/at/all.db: unable to open database file",
        ),
        ("nonsense", "storage (not a URL): not a URL"),
        ("oracledb9://me:hunter2@host/db", "Can't load plugin: sqlalchemy.dialects:oracledb9"),
        ("postgresql://me:hunter2@host/db", "no driver for postgresql is installed"),
        ("postgresql://me:${NOT_SET_HERE}@host/db", "the environment variable NOT_SET_HERE is not set"),
    ],
)
@pytest.mark.parametrize("use", [lambda search_config: open_study(search_config, BASE), look_at_study])
def test_a_storage_that_cannot_be_used(
    search_config: Callable[..., SearchConfig], use: Callable[[SearchConfig], Any], url: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        use(search_config(storage=url))
    assert message in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_secret_in_a_query_is_not_shown(search_config: Callable[..., SearchConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.db\?...: String is not true/false: '\*\*\*'"):
        open_study(search_config(storage=f"sqlite:///{tmp_path}/a.db?uri=hunter2"), BASE)


def test_looking_creates_nothing(search_config: Callable[..., SearchConfig], tmp_path: Path) -> None:
    assert look_at_study(search_config()) is None
    assert list((tmp_path / "out").iterdir()) == []
    assert look_at_study(search_config(storage=f"sqlite:///{tmp_path}/elsewhere.db")) is None
    assert not (tmp_path / "elsewhere.db").exists()
    assert open_study(search_config(study="another"), BASE).trials() == {}
    assert look_at_study(search_config()) is None
    assert look_at_study(search_config(study="another")) is not None


def with_a_trial(search_config: SearchConfig, place: Path) -> SharedStudy:
    shared = open_study(search_config, BASE)
    read_space(search_config, place).propose(asked(shared, search_config.seed))
    return shared


def asked(shared: SharedStudy, seed: int) -> Trial:
    """The next trial, as the optimize loop takes it from the queue."""
    shared.study.enqueue_trial({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `ask` sends no heartbeat
        trial = shared.study.ask()
    shared.seed(seed, shared.number_of(trial))
    return trial


@pytest.mark.parametrize(
    ("keys", "base", "line"),
    [
        (
            {"objective": {"metric": "held_out.overall"}},
            BASE,
            'objective.metric: was "overall", is "held_out.overall"',
        ),
        ({"parameters": {"adapter.rank": {"low": 2, "high": 4}}}, BASE, "parameters.adapter.rank: was null"),
        ({}, {**BASE, "adapter": {"rank": 8}}, "base.adapter.rank: was 16, is 8"),
        ({"pruning": {"metric": "loss/total"}}, BASE, "pruning: was null"),
    ],
)
def test_results_of_another_search_are_not_taken(
    search_config: Callable[..., SearchConfig],
    tmp_path: Path,
    keys: dict[str, Any],
    base: dict[str, Any],
    line: str,
) -> None:
    shared = with_a_trial(search_config(), tmp_path)
    shared.study.tell(0, 0.5)
    assert (
        len(open_study(search_config(trials=99, seed=5, launch=[]), {**BASE, "output": "moved"}).trials())
        == 1
    )
    with pytest.raises(ConfigError, match="has 1 trials of another search") as raised:
        open_study(search_config(**keys), base)
    assert line in str(raised.value)


def test_before_any_result_a_changed_config_replaces_it(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    with_a_trial(search_config(), tmp_path)
    assert (
        len(open_study(search_config(objective={"metric": "held_out.overall"}), BASE).trials()) == 1
    )  # would run the same
    assert (
        open_study(search_config(), {**BASE, "adapter": {"rank": 8}}).trials() == {}
    )  # would not: set aside
    with pytest.raises(ConfigError, match='was "maximize", is "minimize"'):
        open_study(
            search_config(objective={"metric": "overall", "direction": "minimize"}),
            {**BASE, "adapter": {"rank": 8}},
        )


def test_a_retried_trial_keeps_its_number_and_its_values(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    search = search_config()
    shared = with_a_trial(search, tmp_path)
    values = shared.trials()[0].params
    with_a_trial(search, tmp_path)
    shared.study.tell(0, state=TrialState.FAIL)
    shared.requeue(0)
    assert shared.finished() == 0
    assert [trial.state for trial in shared.trials().values()] == [TrialState.WAITING, TrialState.RUNNING]
    retry = asked_again(shared)
    assert (retry.number, shared.number_of(retry), retry.params) == (2, 0, values)
    assert read_space(search, tmp_path).propose(retry) == values
    shared.study.tell(retry, 0.5)
    assert asked_again(shared).params == {}  # the queue is empty: a surplus trial
    assert shared.number_of(asked(shared, 0)) == 2  # neither it nor the retry has a number of its own


def asked_again(shared: SharedStudy) -> Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return shared.study.ask()


def test_what_is_proposed_depends_on_seed_number_and_results_alone(
    search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    search = search_config()
    space = read_space(search, tmp_path)

    def proposals(seed: int, reopen: bool) -> list[Any]:
        shared = open_study(search_config(study=f"{seed} {reopen}"), BASE)
        for number in range(14):  # the first ten are random, then the results guide
            if reopen:
                shared = open_study(search_config(study=f"{seed} {reopen}"), BASE)
            trial = asked(shared, seed)
            (value,) = space.propose(trial).values()
            assert trial.number == number
            shared.study.tell(trial, -abs(float(value or 0) - 1e-3))  # type: ignore[arg-type]
        return [trial.params for trial in shared.trials().values()]

    unbroken = proposals(0, False)
    assert unbroken == proposals(0, True)
    assert unbroken != proposals(1, False)
    assert len({next(iter(item.values())) for item in unbroken}) == len(unbroken)
