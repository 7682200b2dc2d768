"""From files, folders and Hugging Face names to rows, each with its place."""
