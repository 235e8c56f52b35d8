"""Attention on CuPy arrays: the only part of the library that imports CuPy."""
