"""Measurements: against peers (`python -m benchmarks.peers`) and over time (asv, see `bench_*, dashboard`)."""
