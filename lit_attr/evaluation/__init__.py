"""What records mean: agreement, faithfulness, means by role and layer, the run summary."""
