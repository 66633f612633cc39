"""What is kept: the record format, the run folder and its lock, reading and exports.

Reading needs no torch; only `lit_attr.records.encoding` and `lit_attr.records.exports.inseq` do.
"""
