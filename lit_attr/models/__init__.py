"""Causal language models: loading, limits, identity, hooks, and where their components write."""
