"""Exact effects of ablated cells: which cells share a pass, and what passes share."""
