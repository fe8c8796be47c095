"""Others who are told of each death: the journal, a collector of OpenTelemetry.

Each is bounded, keeps nobody waiting, tries again, and counts what it had to leave out. The record
in the store is the truth; a sink has a copy.
"""
