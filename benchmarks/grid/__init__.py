"""One grid for all operations, ours beside the fastest peer: ``python -m benchmarks.grid``."""
