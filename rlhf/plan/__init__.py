"""What a run needs before anything is rented: the real training step traced without weights, and arithmetic over cards."""
