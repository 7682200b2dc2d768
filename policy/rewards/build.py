"""The config's rewards, made ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from policy.rewards.ensemble import EnsembleReward
from policy.rewards.function import FunctionReward, GoldReward, load_function
from policy.rewards.judge import JudgeReward
from policy.rewards.model import ModelReward
from policy.rewards.principle import PrincipleReward
from policy.rewards.protocol import Source
from policy.rewards.server import ServerReward
from policy.rewards.weighted import Part, WeightedRewards
from reward.load_scorer import load_scorer
from reward.principle.question import question_tokens
from reward.principle.scorer import PrincipleScorer
from reward.scorer import Scorer
from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import GOLD, Kind, names_of
from rlhf.config.rewards import Source as SourceConfig
from rlhf.core.errors import ConfigError, ModelError
from rlhf.distributed import processes
from rlhf.models.chat import Chat
from rlhf.models.loading import REWARD, PeftModel

HELD_OUT = "held_out"
CLOSING_TOKENS = 8
"""What a chat template may add after an answer."""


class RewardBuilder:
    """Makes sources around one policy.

    Args:
        model: the base with the policy's adapter, or a frozen copy of it; reward models on the same base become roles of it.

    Attributes:
        model: the same, with adapters where it had none.
    """

    def __init__(self, config: PolicyConfig, model: PeftModel | PreTrainedModel, chat: Chat) -> None:
        self.config, self.model, self.chat = config, model, chat

    def rewards(self) -> WeightedRewards:
        """What the policy learns from.

        Raises:
            UserError: one of the rewards cannot be had.
        """
        sources = self.config.reward
        parts = list[Part]()
        for place, (name, source) in enumerate(zip(names_of(sources), sources, strict=True)):
            made = self._make(source, REWARD if not place else f"{REWARD}_{place + 1}")
            columns = made.columns(name) if isinstance(made, PrincipleReward) else {name: made}
            parts += [Part(column, source.weight, one) for column, one in columns.items()]
        shaping = self.config.reward_shaping
        return WeightedRewards(parts, shaping.missing, normalise_each=shaping.normalise == "each")

    def held_out(self) -> WeightedRewards | None:
        """What only watches, if anything.

        Raises:
            UserError: it cannot be had.
        """
        told = self.config.held_out_reward
        if told is None:
            return None
        return WeightedRewards(
            [Part(HELD_OUT, 1.0, self._make(told, HELD_OUT))], self.config.reward_shaping.missing
        )

    def _make(self, source: SourceConfig, role: str) -> Source:
        makers: Mapping[Kind, Callable[[SourceConfig, str], Source]] = {
            "adapter": self._adapter,
            "classifier": self._classifier,
            "server": lambda told, _: server(told),
            "function": lambda told, _: function(told),
            "judge": self._judge,
            "ensemble": self._ensemble,
            "principle": self._principle,
        }
        return makers[source.kind](source, role)

    def _ensemble(self, source: SourceConfig, role: str) -> Source:
        ensemble = source.ensemble
        assert ensemble is not None  # its kind says so
        members = [
            self._adapter(SourceConfig(adapter=folder), role if not number else f"{role}_member_{number + 1}")
            for number, folder in enumerate(ensemble.adapters)
        ]
        return EnsembleReward(members, ensemble.rule, ensemble.coefficient)

    def _adapter(self, source: SourceConfig, role: str) -> Source:
        scorer = Scorer.share(
            source.place, self.model, self.chat, tokens_per_batch=self.config.tokens_per_batch, name=role
        )
        self.model = scorer.model
        require_room(self.config, scorer.max_length)
        return ModelReward(scorer)

    def _judge(self, source: SourceConfig, role: str) -> Source:
        assert source.judge is not None  # its kind says so
        return JudgeReward(source.judge, self.config.output / "judge" / f"{role}-{processes.rank()}.jsonl")

    def _principle(self, source: SourceConfig, role: str) -> PrincipleReward:
        assert source.principle is not None  # its kind says so
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

    def _classifier(self, source: SourceConfig, role: str) -> Source:
        try:
            scorer = load_scorer(
                source.place, label=source.label, tokens_per_batch=self.config.tokens_per_batch
            )
        except ModelError as error:
            raise ModelError(
                f"The reward {source.words()}: {error.found}",
                allowed=error.allowed
                or "a folder or Hugging Face name of an AutoModelForSequenceClassification with a chat template, or a "
                "final/ folder of `rlhf train-reward`",
                fix=error.fix or "try it: rlhf score MODEL --input FILE.jsonl --output FILE.jsonl",
            ) from error
        return ModelReward(scorer)


def require_room(config: PolicyConfig, context: int, question: int = 0) -> None:
    """Make sure that the longest prompt with the longest answer fits a reward model's context.

    Args:
        question: tokens that follow the answer.

    Raises:
        ConfigError: it does not.
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


def server(source: SourceConfig) -> ServerReward:
    """A client of the server that a config names."""
    return ServerReward(source.place, token_env=source.token_env, timeout=source.timeout)


def function(source: SourceConfig) -> FunctionReward | GoldReward:
    """The function that a config names."""
    return GoldReward() if source.place == GOLD else FunctionReward(load_function(source.place), source.place)
