"""LoRA adapters: read, write, blend, extrapolate, merge."""
