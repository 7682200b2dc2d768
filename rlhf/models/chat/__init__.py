"""From messages to token ids: the tokenizer, its chat template, and the ids a run needs.

Everything that turns a conversation into ids goes through `Chat`.
"""

from rlhf.models.chat.chat import Chat as Chat
