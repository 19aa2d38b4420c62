"""Moving and keeping data: decode, extract, encode, the table, the command line."""
