"""Direct preference optimisation: a policy from preferences, without rollouts or a reward model."""
