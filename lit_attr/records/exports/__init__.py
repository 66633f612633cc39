"""Records in the formats of other programs: tables, and files that Inseq opens."""
