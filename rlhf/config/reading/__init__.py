"""From YAML files to plain data with the place of each key, and from a schema to errors in plain words."""
