"""How right the scores are, judged by exact effects: agreement, its intervals, faithfulness."""
