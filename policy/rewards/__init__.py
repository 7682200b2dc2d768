"""Where rewards come from: one file a source."""
