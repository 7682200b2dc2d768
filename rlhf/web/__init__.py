"""Pages on loopback: signed sessions and request guards, which all share, and the chat page."""
