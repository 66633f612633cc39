"""The nonlinear parts of a model: its norms, and the activation functions and gates of its MLPs."""
