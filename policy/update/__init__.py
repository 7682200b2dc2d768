"""One update of a policy, from rollouts to a loss.

Read in order: `sampling`, `forward`, `advantages`, `losses`, `step`; `statistics` holds the
logged figures, and `gathering` merges them over ranks.
"""
