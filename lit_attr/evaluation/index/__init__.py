"""The index of a run: a few numbers and texts of each contrast, and which of them are chosen in which order."""
