"""Checks of machine and config before a run: facts are collected once, then judged by pure functions."""
