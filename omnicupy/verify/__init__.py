"""Verification: every kernel, or without a GPU the CPU engine, against the float64 reference."""
