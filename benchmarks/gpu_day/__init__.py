"""The parts of `benchmarks/gpu.py`, one module each: `rows(day)` gives names and what measures them."""
