"""Dumpers of others: who registers for processes that die, bids for one, and has it until it says
`CONTINUE`. docs/dumpers.md is the reference."""
