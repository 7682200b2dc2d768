"""Experiment trackers (trackio, wandb, tensorboard, mlflow) and the user's own trainer callbacks."""
