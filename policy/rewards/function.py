"""Rewards by a Python function with TRL's signature, and by the gold score of a prompt's check.

    f(prompts=[messages, ...], completions=[[{"role": "assistant", "content": answer}], ...],
      completion_ids=[ids, ...], source=[name, ...], check=[check or None, ...],
      COLUMN=[value, ...], ...) -> [number or None, ...]

Each list has one element per answer and is passed by keyword; a function names what it needs and takes the
rest as `**kwargs`. Every other column of a prompt's row is passed under its name, such as `answer`, unless
the name is one of those above. The function may be async. TRL's `trainer_state`, `log_extra` and `log_metric`
are not passed.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from policy.rewards.function_file import as_from_its_folder, definition_of, user_line
from policy.rewards.protocol import Missing
from rlhf.core.errors import ConfigError, RewardError, did_you_mean, excerpt, shorten
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import gold_score
from rlhf.runs.signals import TerminatedError

RewardFunction = Callable[..., Any]
A_LIST = "a flat list with a number or None for each answer, in their order"
NOT_A_NUMBER = "not a usable number"
LONGEST = 600
"""Characters of a user's exception that are shown."""


class FunctionReward:
    """Calls a user's function.

    Args:
        name: `FILE.py:NAME` or `MODULE:NAME`.
    """

    def __init__(self, function: RewardFunction, name: str) -> None:
        self.function, self.name = function, name

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The function's value for each answer; None and numbers that are not finite are missing rewards.

        Raises:
            RewardError: the function failed, or did not return a number or None for each answer.
        """
        return [self._number(value) for value in self._values(prompts, rollouts)]

    def check(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> None:
        """Check the function's signature, and call it once with sample answers.

        Raises:
            ConfigError: the function needs an argument that is not passed, fails, or does not return a list
                of numbers.
        """
        arguments = arguments_of(prompts, rollouts)
        self._check_signature(arguments)
        try:
            rewards = self.of(prompts, rollouts)
        except RewardError as error:
            fix = error.fix.replace(", then --resume", "")
            raise ConfigError(f"{error.found} (in a sample call)", allowed=error.allowed, fix=fix) from error
        for reward in rewards:
            if isinstance(reward, Missing) and reward.reason.endswith(NOT_A_NUMBER):
                where = definition_of(self.function, self.name)
                raise ConfigError(
                    f"The reward function {self.name} ({where}): {reward.reason}, in a sample call",
                    allowed=A_LIST,
                    fix="return float(...) for each answer, or None where there is no reward",
                )

    def _check_signature(self, arguments: Mapping[str, Any]) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # some builtins have none: the sample call decides
            return
        try:
            signature.bind(**arguments)
            return
        except TypeError as error:
            reason = str(error)
        kinds = inspect.Parameter
        parameters = signature.parameters.values()
        needed = [
            p.name
            for p in parameters
            if p.default is kinds.empty
            and p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
            and (p.name not in arguments or p.kind is kinds.POSITIONAL_ONLY)
        ]
        positional = [p.name for p in parameters if p.kind is kinds.POSITIONAL_ONLY and p.name in arguments]
        if positional:
            what = f"takes {', '.join(positional)} by position only"
            fix = "remove the `/` from its parameters"
        elif needed:
            hint = did_you_mean(needed[0], arguments)
            what = f"needs the argument{'s' * (len(needed) > 1)} {', '.join(needed)}, which is not passed"
            what += f".{hint.removesuffix('?')}" if hint else ""
            fix = f"add a column {needed[0]!r} to the prompts' rows, or give it a default"
        elif not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
            extra = [name for name in arguments if name not in signature.parameters]
            what, fix = f"does not take {', '.join(extra)}", "add **kwargs to its parameters"
        else:
            what, fix = f"cannot be called: {reason}", "change its parameters"
        raise ConfigError(
            f"The reward function {self.name} ({definition_of(self.function, self.name)}) {what}.",
            allowed=f"the keyword arguments {', '.join(arguments)}",
            fix=fix,
        )

    def _values(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Any]:
        """The function's return value as a list with one element per answer; elements are not checked yet."""
        try:
            with as_from_its_folder(self.name):
                returned = self.function(**arguments_of(prompts, rollouts))
                if inspect.isawaitable(returned):
                    returned = _await(returned)
                if hasattr(returned, "tolist"):  # an array or a tensor
                    returned = returned.tolist()
                values = list(returned) if _is_ordered(returned) else None
        except (KeyboardInterrupt, TerminatedError):
            raise
        except BaseException as error:  # user code may raise anything
            raise self._failed(error) from error
        where = f"The reward function {self.name} ({definition_of(self.function, self.name)}) returned"
        if returned is None:
            raise RewardError(f"{where} None.", allowed=A_LIST, fix="end it with `return [...]`")
        if values is None:
            raise RewardError(
                f"{where} {excerpt(returned)}, of type {type(returned).__name__}, for {len(rollouts)} "
                "answers.",
                allowed=A_LIST,
                fix="return one number for each of `completions`",
            )
        if len(values) != len(rollouts):
            raise RewardError(
                f"{where} {len(values)} rewards for {len(rollouts)} answers.",
                allowed=A_LIST,
                fix="return one number for each of `completions`",
            )
        return values

    def _failed(self, error: BaseException) -> RewardError:
        definition = definition_of(self.function, self.name)
        line = user_line(error, definition.rpartition(":")[0], definition)
        if isinstance(error, SystemExit):
            code = "" if error.code is None else repr(error.code)
            return RewardError(
                f"The reward function {self.name} called sys.exit({code}) at {line}.",
                allowed="an exception, or None as the reward of an answer that has none",
                fix=f"replace sys.exit at {line}, then --resume",
            )
        what = f"{type(error).__name__}: {shorten(str(error), 0, width=LONGEST)}"
        what = what if str(error) else type(error).__name__
        return RewardError(
            f"The reward function {self.name} failed at {line}: {what}", fix=f"fix {line}, then --resume"
        )

    def _number(self, value: Any) -> float | Missing:
        if value is None:
            return Missing("it returned None", f"return a number from {self.name} in every case")
        if isinstance(value, str | bytes):
            return Missing(f"it returned {excerpt(value)}, {NOT_A_NUMBER}", self._convert())
        try:
            number = float(value)
        except OverflowError:
            return Missing(
                f"it returned an integer beyond the range of a float, {NOT_A_NUMBER}",
                f"return a number below 1e308 from {self.name}",
            )
        except (TypeError, ValueError):
            return Missing(f"it returned {excerpt(value)}, {NOT_A_NUMBER}", self._convert())
        if math.isfinite(number):
            return number
        return Missing(
            f"it returned {number}", f"avoid the division or overflow in {self.name} that gives {number}"
        )

    def _convert(self) -> str:
        return f"return float(...) of it from {self.name}, one number for each completion"


def _is_ordered(returned: Any) -> bool:
    """Whether a return value has one element after the other, as sets, mappings and texts do not."""
    return hasattr(returned, "__iter__") and not isinstance(returned, str | bytes | Set | Mapping)


def _await(result: Awaitable[Any]) -> Any:
    """The result of an async function.

    In a notebook, whose event loop is running, from a loop in another thread.
    """

    async def wait() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


class GoldReward:
    """The gold score of prompts whose answers can be checked by code."""

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The gold score in 0..1; missing where a prompt has no check."""
        return [
            Missing("the prompt has no check", "leave such prompts out: data.prompts.N.where")
            if prompt.check is None
            else gold_score(prompt.check, rollout.text)
            for prompt, rollout in zip(prompts, rollouts, strict=True)
        ]


def arguments_of(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Mapping[str, list[Any]]:
    """The keyword arguments of a reward function; checks and columns are copies that it may change."""
    names = {name: None for prompt in prompts for name in prompt.columns}
    return {
        **{name: [copy.deepcopy(prompt.columns.get(name)) for prompt in prompts] for name in names},
        "prompts": [[m.as_dict() for m in prompt.messages] for prompt in prompts],
        "completions": [[{"role": "assistant", "content": rollout.text}] for rollout in rollouts],
        "completion_ids": [list(rollout.completion_ids) for rollout in rollouts],
        "source": [prompt.source for prompt in prompts],
        "check": [copy.deepcopy(p.columns.get("check") if p.check is None else p.check) for p in prompts],
    }
