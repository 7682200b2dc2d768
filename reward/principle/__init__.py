"""Principle rewards: how likely a language model is to say Yes, not No, when asked whether a response satisfies a principle."""
