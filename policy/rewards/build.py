"""Builds the rewards of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from transformers import PreTrainedModel

from policy.rewards.ensemble import EnsembleReward
from policy.rewards.function import FunctionReward, GoldReward
from policy.rewards.function_file import load_function
from policy.rewards.judge import JudgeReward
from policy.rewards.model import ModelReward
from policy.rewards.principle import PrincipleReward
from policy.rewards.protocol import RewardTerm
from policy.rewards.server import ServerReward
from policy.rewards.weighted import WeightedRewards, WeightedTerm
from reward.load_scorer import load_scorer
from reward.principle.question import question_tokens
from reward.principle.scorer import PrincipleScorer
from reward.scorer import Scorer
from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import GOLD, RewardKind, RewardSourceConfig, names_of
from rlhf.core.errors import ConfigError, ModelError
from rlhf.distributed import processes
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.names import REWARD

HELD_OUT = "held_out"
CLOSING_TOKENS = 8
"""Tokens that a chat template may add after an answer."""


class RewardBuilder:
    """Builds the rewards of a policy run.

    Args:
        model: the base with the policy's adapter, or a frozen copy of the base; reward models on it become
            adapters of it.

    Attributes:
        model: the same model, wrapped by PEFT once an adapter was added.
    """

    def __init__(self, config: PolicyConfig, model: PeftModel | PreTrainedModel, chat: Chat) -> None:
        self.config, self.model, self.chat = config, model, chat

    def rewards(self) -> WeightedRewards:
        """The reward that the policy is trained on.

        Raises:
            UserError: a term cannot be loaded or reached.
        """
        sources = self.config.reward
        terms = list[WeightedTerm]()
        for index, (name, source) in enumerate(zip(names_of(sources), sources, strict=True)):
            reward = self._make(source, REWARD if not index else f"{REWARD}_{index + 1}")
            columns = reward.columns(name) if isinstance(reward, PrincipleReward) else {name: reward}
            terms += [WeightedTerm(column, source.weight, term) for column, term in columns.items()]
        shaping = self.config.reward_shaping
        return WeightedRewards(terms, shaping.missing, normalise_each=shaping.normalise == "each")

    def held_out(self) -> WeightedRewards | None:
        """The held-out reward, which is only logged; None where the config has none.

        Raises:
            UserError: it cannot be loaded or reached.
        """
        source = self.config.held_out_reward
        if source is None:
            return None
        return WeightedRewards(
            [WeightedTerm(HELD_OUT, 1.0, self._make(source, HELD_OUT))], self.config.reward_shaping.missing
        )

    def _make(self, source: RewardSourceConfig, role: str) -> RewardTerm:
        makers: Mapping[RewardKind, Callable[[RewardSourceConfig, str], RewardTerm]] = {
            "adapter": self._adapter,
            "classifier": self._classifier,
            "server": lambda source, _: server(source),
            "function": lambda source, _: function(source),
            "judge": self._judge,
            "ensemble": self._ensemble,
            "principle": self._principle,
        }
        return makers[source.kind](source, role)

    def _ensemble(self, source: RewardSourceConfig, role: str) -> RewardTerm:
        ensemble = source.ensemble
        assert ensemble is not None  # by its kind
        members = [
            self._adapter(
                RewardSourceConfig(adapter=folder), role if not number else f"{role}_member_{number + 1}"
            )
            for number, folder in enumerate(ensemble.adapters)
        ]
        return EnsembleReward(members, ensemble.rule, ensemble.coefficient)

    def _adapter(self, source: RewardSourceConfig, role: str) -> RewardTerm:
        scorer = Scorer.share(
            source.place, self.model, self.chat, tokens_per_batch=self.config.tokens_per_batch, name=role
        )
        self.model = scorer.model
        require_room(self.config, scorer.max_length)
        return ModelReward(scorer)

    def _judge(self, source: RewardSourceConfig, role: str) -> RewardTerm:
        assert source.judge is not None  # by its kind
        return JudgeReward(source.judge, self.config.output / "judge" / f"{role}-{processes.rank()}.jsonl")

    def _principle(self, source: RewardSourceConfig, role: str) -> PrincipleReward:
        assert source.principle is not None  # by its kind
        scorer = PrincipleScorer.share(
            source.principle,
            self.model,
            self.chat,
            source.principles,
            tokens_per_batch=self.config.tokens_per_batch,
            name=role,
        )
        self.model = scorer.model
        require_room(self.config, scorer.max_length, question_tokens(self.chat, source.principles))
        return PrincipleReward(scorer)

    def _classifier(self, source: RewardSourceConfig, role: str) -> RewardTerm:
        with naming(source):
            scorer = load_scorer(
                source.place,
                label=source.label,
                reasoning=source.reasoning,
                tokens_per_batch=self.config.tokens_per_batch,
            )
        return ModelReward(scorer)


@contextmanager
def naming(source: RewardSourceConfig) -> Iterator[None]:
    """Name the reward in errors of the classifier that it is."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"The reward {source.words()}: {error.found}",
            allowed=error.allowed
            or "a folder or Hugging Face name of an AutoModelForSequenceClassification with a chat "
            "template, or a final/ folder of `rlhf train-reward`",
            fix=error.fix or "try it: rlhf score MODEL --input FILE.jsonl --output FILE.jsonl",
        ) from error


def require_room(config: PolicyConfig, context: int, question: int = 0) -> None:
    """Check that the longest prompt and answer fit into a reward model's context.

    Args:
        question: tokens that follow the answer.

    Raises:
        ConfigError: they do not fit.
    """
    closing = CLOSING_TOKENS + question
    longest = config.data.max_prompt_tokens + config.rollouts.max_new_tokens + closing
    room = context - config.data.max_prompt_tokens - closing
    if longest > context:
        raise ConfigError(
            f"Prompt, answer and closing tokens may reach {longest} tokens.",
            allowed=f"at most {context}, the context of the reward model's base",
            fix=f"rollouts.max_new_tokens={room}, or lower data.max_prompt_tokens"
            if room > 0
            else f"lower data.max_prompt_tokens, which is {config.data.max_prompt_tokens}",
        )


def server(source: RewardSourceConfig) -> ServerReward:
    """The client of a config's reward server."""
    return ServerReward(source.place, token_env=source.token_env, timeout=source.timeout)


def function(source: RewardSourceConfig) -> FunctionReward | GoldReward:
    """The function of a config."""
    return GoldReward() if source.place == GOLD else FunctionReward(load_function(source.place), source.place)
