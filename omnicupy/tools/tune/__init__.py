"""Searching the fastest variant for a problem on this GPU."""
