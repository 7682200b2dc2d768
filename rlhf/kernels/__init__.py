"""What makes a forward and backward pass fast: packing, attention, layers, log-probabilities."""
