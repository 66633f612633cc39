"""The Attributions tab of TensorBoard: a plugin that reads the records of the runs under the log folder."""
