"""Scores of a model's components: rules, exact effects and faithfulness."""
