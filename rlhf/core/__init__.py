"""Errors, records, number formats and interval estimates. Imports nothing else of this project."""
