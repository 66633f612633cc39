"""What records mean: agreement with exact effects, faithfulness, means by role and layer, the run summary."""
