"""Rollouts by stock vLLM servers."""
