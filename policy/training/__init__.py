"""Training of a policy: prompts, model and roles, the trainer and its epochs, control of the KL."""
