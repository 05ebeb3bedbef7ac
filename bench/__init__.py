"""Benchmarks of tidegate against its peers, and against what the machine can do."""
