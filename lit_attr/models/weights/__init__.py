"""Weights of a model: from checkpoints, quantised, and shared by processes."""
