"""Which contrasts of a run get exact effects: the pilot of an adaptive run, and those that judge the scores."""
