"""From a row to a record: one file a row schema."""
