"""What is kept: the record format, the run folder and its lock, reading and exports."""
