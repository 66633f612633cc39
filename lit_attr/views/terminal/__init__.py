"""What commands print on a terminal: lists of facts, and the map of one."""
