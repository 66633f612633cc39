"""What answers: loading, checkpoints, identity, hooks and the residual writes of a model."""
