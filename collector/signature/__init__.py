"""Which deaths are the same one again: a name for each bug, made of its category and its stack."""
