"""Benchmarks: what the server costs and how long a student waits. See README.md."""
