"""What a policy answers: held-out prompts, contests, answer files for judges."""
