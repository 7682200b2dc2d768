"""The question about a principle, in one place for training, scoring and rewards.

    score = logit(Yes) - logit(No) of the next token after the conversation and the question

Source: arXiv 2509.21319 (the form of the score; the wording is this project's). A response's reasoning is
left to the chat template, as in any earlier turn of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.records import Conversation, Message
from rlhf.distributed.sharding import full_tensor
from rlhf.models.bases import require_plain_logits
from rlhf.models.chat import Chat

YES, NO = "Yes", "No"
QUESTION = (
    "Does your last response satisfy this principle?\n\nPrinciple: {principle}\n\n"
    f"Answer with one word: {YES} or {NO}."
)


def question(conversation: Conversation, principle: str) -> Conversation:
    """A conversation with a response, followed by the question whether the response satisfies a principle.

    Raises:
        ConfigError: the principle is empty.
    """
    if not principle.strip():
        raise ConfigError(
            "A principle is empty.",
            allowed="a sentence that a response may satisfy or not",
            fix='write one, such as "The response is at most one sentence."',
        )
    return (*conversation, Message("user", QUESTION.format(principle=principle.strip())))


def question_tokens(chat: Chat, principles: Sequence[str]) -> int:
    """How many tokens the longest of the questions adds to a conversation."""
    answered = (Message("user", "a"), Message("assistant", "b"))
    before = len(chat.conversation_ids(answered))
    return max(len(chat.prompt_ids(question(answered, principle))) for principle in principles) - before


def answer_ids(chat: Chat) -> tuple[int, int]:
    """The ids of Yes and No; of a word that is several tokens, the first.

    Raises:
        ModelError: both words begin with the same token.
    """
    yes, no = (int(chat.tokenizer(word, add_special_tokens=False)["input_ids"][0]) for word in (YES, NO))
    if yes == no:
        raise ModelError(
            f"The tokenizer begins {YES!r} and {NO!r} with the same token.",
            allowed="a tokenizer that tells the two words apart by their first token",
            fix="model.base=another model",
        )
    return yes, no


def answer_head(model: PreTrainedModel, chat: Chat) -> nn.Linear:
    """A frozen head with one output, logit(Yes) - logit(No): the difference of two output embeddings.

    Raises:
        ModelError: the model's logits are more than hidden states times output embedding, see
            `require_plain_logits`.
    """
    require_plain_logits(model)
    yes, no = answer_ids(chat)
    weight_VD: Tensor = full_tensor(model.get_output_embeddings().weight).detach()
    direction_D = weight_VD[yes].float() - weight_VD[no].float()
    head = nn.Linear(len(direction_D), 1, bias=False, device=direction_D.device, dtype=torch.float32)
    head.weight = nn.Parameter(direction_D[None], requires_grad=False)
    return head
