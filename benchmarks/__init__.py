"""Benchmarks: one script for each claim. `make bench` runs them all and prints their tables."""
