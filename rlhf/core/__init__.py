"""Errors, records, number formats and interval estimates. Imports no other package of this project."""
