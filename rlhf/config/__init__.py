"""The schemas of all configs, typed and frozen. Imports no torch."""
