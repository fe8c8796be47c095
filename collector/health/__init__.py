"""What a node's health agent asks a collector: deaths, crash loops, triggers, its own state.

A Unix socket that speaks HTTP with JSON (docs/health.md). It tells facts, and has no memory of any
process in it.
"""
