"""What a stage trains, in words: for a dry run and for the model card."""

from __future__ import annotations

from rlhf.config.reward import StageConfig


def objective_words(stage: StageConfig) -> str:
    """The terms of a stage's loss with their weights."""
    terms = {
        "regression": stage.regression_weight,
        f"{stage.preference_loss} Bradley-Terry": stage.preference_weight,
        "centring": stage.centering_weight,
    }
    return " + ".join(f"{weight:g} x {name}" for name, weight in terms.items() if weight)


def length_words(stage: StageConfig) -> str:
    """How long a stage trains at most."""
    epochs = f"{stage.epochs:g} epoch{'' if stage.epochs == 1 else 's'} of batches of {stage.batch_size}"
    if stage.max_steps is None:
        return epochs
    return f"{epochs}, at most {stage.max_steps:,} update{'' if stage.max_steps == 1 else 's'}"
