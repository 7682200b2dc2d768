"""The Pairwise Justifier (arXiv 2410.01257): a model that writes reasons and then which of two responses is
better."""
