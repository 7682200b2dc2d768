"""RLHF alignment: a hybrid reward model and a REINFORCE loop on one frozen base model."""

__version__ = "0.1.0"
