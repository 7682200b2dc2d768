"""Is this machine fit for a run, and is the config? Facts are gathered once, then judged by pure functions."""
