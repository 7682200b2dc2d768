"""Models: bases and their loading, roles on one base, chat templates, forward passes over packed rows."""
