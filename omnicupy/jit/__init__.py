"""A kernel variant becomes a cubin on disk. No array, no mask, no CuPy."""
