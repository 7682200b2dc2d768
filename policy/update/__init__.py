"""One update of a policy, from rewarded answers to a loss."""
