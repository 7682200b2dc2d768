"""Pages on several runs or systems, side by side."""
