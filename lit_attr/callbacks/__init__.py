"""When things happen in a Trainer: writing, monitoring, logging, signals."""
