"""The ground both halves stand on; it imports nothing else of this project."""
