"""The contrasts of a run as one table: made once, kept in Arrow files, and read a batch at a time."""
