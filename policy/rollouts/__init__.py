"""Rollout engines: vLLM in this process, vLLM servers, and transformers, behind one protocol."""
