"""The chat page's own files."""
