"""What is asked: templates, sources, facts, contrasts and batches of them."""
