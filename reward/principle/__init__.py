"""Principle rewards: the log-odds of Yes against No that a response satisfies a principle."""
