"""Memory of a run, from the real update traced on fake tensors."""
