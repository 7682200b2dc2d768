"""From files, folders and Hugging Face names to rows, and from a row to a record: one file a row schema."""
