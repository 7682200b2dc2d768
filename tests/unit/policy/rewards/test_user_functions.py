"""Reward functions as users write them: what loads, what is refused before a model is, and whose line is
blamed."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy.rewards.function import FunctionReward
from policy.rewards.function_file import load_function
from policy.rewards.protocol import Missing
from rlhf.core.errors import ConfigError, RewardError
from rlhf.core.records import Message, Prompt, Rollout
from rlhf.runs.signals import TerminatedError

PROMPTS = [Prompt((Message("user", "Q"),), "here", {"answer": "1"})] * 2
ROLLOUTS = [Rollout((1,), (5,) * (n + 1), (), True, "a" * n) for n in range(2)]

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of reward functions; returns its path."""

    def file(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return f"{tmp_path}/{name}"

    return file


def load(place: str) -> FunctionReward:
    return FunctionReward(load_function(place), place)


def line_of(file: str, text: str) -> str:
    lines = Path(file).read_text().splitlines()
    return f"{file}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def test_a_file_with_dataclasses(write: Write) -> None:
    file = write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass W:\n    "
        "a: float = 2.0\n"
        "def f(completions, **_): return [W().a * n for n in range(len(completions))]\n"
    )
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [0.0, 2.0]


def test_a_file_that_imports_its_neighbours_at_once_and_later(write: Write) -> None:
    write("def one(n): return [1.0] * n\n", "neighbour_first.py")
    write("ADDED = 1.0\n", "neighbour_second.py")
    file = write(
        "from neighbour_first import one\n"
        "def f(completions, **_):\n"
        "    from neighbour_second import ADDED\n"
        "    return [x + ADDED for x in one(len(completions))]\n"
    )
    before = list(sys.path)
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [2.0, 2.0]
    assert sys.path == before


def test_a_file_is_executed_once_and_again_when_it_has_changed(write: Write, tmp_path: Path) -> None:
    text = (
        "import pathlib\nlog = pathlib.Path(__file__).with_suffix('.log')\n"
        "log.write_text((log.read_text() if log.exists() else '') + 'x')\n"
        "def f(completions, **_): return [1.0, 2.0]\ndef g(completions, **_): return [3.0, 4.0]\n"
    )
    file = write(text)
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [1.0, 2.0]
    assert load(f"{file}:g").of(PROMPTS, ROLLOUTS) == [3.0, 4.0]
    assert (tmp_path / "mine.log").read_text() == "x"
    write(text.replace("3.0, 4.0", "30.0, 40.0"))
    assert load(f"{file}:g").of(PROMPTS, ROLLOUTS) == [30.0, 40.0]


def test_a_file_named_like_another_module_replaces_none(write: Write) -> None:
    import policy as ours

    file = write("def f(completions, **_): return [0.0, 1.0]\n", "policy.py")
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [0.0, 1.0]
    assert sys.modules["policy"] is ours


@pytest.mark.parametrize("in_notebook", [False, True])
def test_async_functions_of_every_form(write: Write, in_notebook: bool) -> None:
    async def plain(completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0, 2.0]

    class Judge:
        async def __call__(self, completions: Any, **_: Any) -> list[float]:
            return [1.0, 2.0]

    for function in (plain, functools.partial(plain), Judge()):
        reward = FunctionReward(function, "mine.py:f")
        reward.check(PROMPTS, ROLLOUTS)
        if in_notebook:

            async def cell(reward: FunctionReward = reward) -> Any:
                return reward.of(PROMPTS, ROLLOUTS)

            assert asyncio.run(cell()) == [1.0, 2.0]
        else:
            assert reward.of(PROMPTS, ROLLOUTS) == [1.0, 2.0]


@pytest.mark.parametrize(
    "returned", [np.array([1.0, 2.0], np.float32), torch.tensor([1.0, 2.0], requires_grad=True), (1, 2.0)]
)
def test_arrays_and_tensors_are_lists(returned: Any) -> None:
    assert FunctionReward(lambda **_: returned, "mine.py:f").of(PROMPTS, ROLLOUTS) == [1.0, 2.0]


REFUSED = {
    "None": "None",
    "a scalar": "0.5",
    "an array without a dimension": "__import__('numpy').float32(0.5)",
    "too few": "[1.0]",
    "text": "'ab'",
    "texts": "['0.5', '1']",
    "dictionaries": "[{'score': 1.0}] * 2",
    "a dictionary": "{'a': 1.0, 'b': 2.0}",
    "a column": "__import__('numpy').zeros((2, 1))",
    "beyond a float": "[10 ** 400] * 2",
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=list(REFUSED))
def test_a_sample_call_refuses_what_is_no_list_of_numbers(write: Write, value: str) -> None:
    file = write(f"def f(completions, **_):\n    return {value}\n")
    with pytest.raises(ConfigError) as caught:
        load(f"{file}:f").check(PROMPTS, ROLLOUTS)
    assert f"{file}:1" in caught.value.found and caught.value.fix


@pytest.mark.parametrize("value", ["None", "float('nan')"])
def test_a_sample_call_takes_answers_without_a_reward(write: Write, value: str) -> None:
    load(f"{write(f'def f(completions, **_): return [1.0, {value}]')}:f").check(PROMPTS, ROLLOUTS)


def test_a_number_beyond_a_float_is_missing_and_not_a_crash() -> None:
    judged = FunctionReward(lambda **_: [1.0, 10**400], "mine.py:f").of(PROMPTS, ROLLOUTS)
    assert judged[0] == 1.0 and isinstance(judged[1], Missing)


@pytest.mark.parametrize(
    ("text", "blamed", "word"),
    [
        (
            "def f(completions, **_):\n    return helper()\ndef helper():\n    raise KeyError('gone')\n",
            "raise",
            "gone",
        ),
        (
            "import json\ndef f(completions, **_):\n    return json.loads('{')\n",
            "json.loads",
            "JSONDecodeError",
        ),
        ("import sys\ndef f(completions, **_):\n    sys.exit(3)\n", "sys.exit", "sys.exit(3)"),
        ("def f(completions, **_):\n    yield 1.0\n    raise ValueError('late')\n", "raise", "late"),
        ("async def f(completions, **_):\n    raise ValueError('aside')\n", "raise", "aside"),
        ("def f(completions, **_):\n    eval('1 +')\n", "eval", "SyntaxError"),
    ],
)
def test_the_users_own_line_is_blamed(write: Write, text: str, blamed: str, word: str) -> None:
    file = write(text)
    reward = load(f"{file}:f")
    with pytest.raises(RewardError) as caught:
        reward.of(PROMPTS, ROLLOUTS)
    assert caught.value.exit_code == 1
    assert line_of(file, blamed) in caught.value.found and word in caught.value.found
    with pytest.raises(ConfigError) as early:
        reward.check(PROMPTS, ROLLOUTS)
    assert early.value.exit_code == 2 and line_of(file, blamed) in early.value.found


@pytest.mark.parametrize(
    ("parameters", "named", "fix"),
    [
        ("prompts, completions, answer, **kwargs", "answer", "default"),
        ("prompts, completions", "completion_ids", "**kwargs"),
        ("completions, /, **kwargs", "completions", ""),
    ],
)
def test_a_signature_that_does_not_fit_is_refused_before_a_call(
    write: Write, parameters: str, named: str, fix: str
) -> None:
    file = write(f"def f({parameters}):\n    raise SystemError('was called')\n")
    with pytest.raises(ConfigError) as caught:
        load(f"{file}:f").check(PROMPTS, ROLLOUTS)
    assert f"{file}:1" in caught.value.found and named in caught.value.found
    assert fix in caught.value.fix and "was called" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "fix"),
    [
        ("import sys\nsys.exit(1)\n", 2, "__main__"),
        ("x = 1\nimport no_such_thing_at_all\n", 2, "no_such_thing_at_all.py"),
        ("x = 1\ny = (\n", 2, "mine.py:2"),
        ("import json\njson.loads('{')\n", 2, "mine.py:2"),
    ],
)
def test_a_file_that_fails_when_it_is_imported(write: Write, text: str, line: int, fix: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{file}:f")
    assert f"{file}:{line}" in caught.value.found and fix in caught.value.fix


def test_a_function_may_change_the_checks_it_gets(write: Write) -> None:
    file = write("def f(completions, check, **_): return [float(c.pop('answer')) for c in check]\n")
    reward = load(f"{file}:f")
    reward.check(PROMPTS, ROLLOUTS)
    assert reward.of(PROMPTS, ROLLOUTS) == [1.0, 1.0]
    assert PROMPTS[0].check == {"answer": "1"}


def test_a_file_has_its_own_name_for_the_modules_beside_it(write: Write) -> None:
    """A neighbour that imports the file back must get the module that is being executed, not a second one."""
    write("import own_name_file\ndef seen(): return own_name_file.CALLS\n", "own_name_neighbour.py")
    file = write(
        "import own_name_neighbour\nCALLS = []\n"
        "def f(completions, **_):\n    CALLS.append(1)\n"
        "    return [float(len(own_name_neighbour.seen()))] * len(completions)\n",
        "own_name_file.py",
    )
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [1.0, 1.0]


def test_a_file_does_not_replace_a_module_of_its_name(write: Write) -> None:
    import statistics

    file = write("def f(completions, **_): return [1.0] * len(completions)\n", "statistics.py")
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [1.0, 1.0]
    assert sys.modules["statistics"] is statistics


def test_processes_started_by_spawn_can_call_functions_of_the_file(write: Write) -> None:
    file = write(
        "import multiprocessing\ndef size(c): return float(len(c[0]['content']))\n"
        "def f(completions, **_):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        return pool.map_async(size, completions).get(60)\n",
        "starts_processes.py",
    )
    assert load(f"{file}:f").of(PROMPTS, ROLLOUTS) == [0.0, 1.0]


def test_the_fix_of_a_relative_import_is_an_absolute_one(write: Write) -> None:
    file = write("from .helper import x\n")
    with pytest.raises(ConfigError) as caught:
        load(f"{file}:f")
    assert "from NAME import" in caught.value.fix
    assert f"{file}:1" in caught.value.found


def test_a_function_that_changes_the_working_directory_does_not_move_the_run(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write("import os\ndef f(completions, **_):\n    os.chdir('/')\n    return [1.0, 2.0]\n")
    load(f"{file}:f").of(PROMPTS, ROLLOUTS)
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ("return {1.0, 2.0}", "of type set"),
        ("return map(int, ['x', 'y'])", "ValueError"),
        ("import torch; return torch.zeros(2, device='meta')", "meta"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    ],
)
def test_what_a_function_does_is_an_error_of_the_function(write: Write, body: str, result: str) -> None:
    file = write(f"def f(completions, **_):\n    {body}\n")
    with pytest.raises(RewardError) as caught:
        load(f"{file}:f").of(PROMPTS, ROLLOUTS)
    assert result in caught.value.found


def test_a_long_exception_is_shortened(write: Write) -> None:
    file = write("def f(completions, **_): raise ValueError('z' * 10000)\n")
    with pytest.raises(RewardError) as caught:
        load(f"{file}:f").of(PROMPTS, ROLLOUTS)
    assert len(caught.value.found) < 1000


@pytest.mark.parametrize("stops", [KeyboardInterrupt, TerminatedError])
def test_a_signal_in_a_function_is_not_the_functions_error(stops: type[BaseException]) -> None:
    def function(completions: Any, **_: Any) -> Any:
        raise stops

    with pytest.raises(stops):
        FunctionReward(function, "here:function").of(PROMPTS, ROLLOUTS)


@pytest.mark.parametrize(
    ("parameters", "fix"),
    [("completions, /, **_", "remove the `/`"), ("completion, **_", "add a column 'completion'")],
)
def test_the_fix_of_a_signature(write: Write, parameters: str, fix: str) -> None:
    file = write(f"def f({parameters}): return [1.0, 2.0]\n")
    with pytest.raises(ConfigError) as caught:
        load(f"{file}:f").check(PROMPTS, ROLLOUTS)
    assert fix in caught.value.fix
    assert "completion" in caught.value.found
