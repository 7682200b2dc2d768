"""What all pages on loopback share: signed sessions and request guards; and the chat page."""
