"""Benchmarks: timing, the rival libraries, suites of workloads, and the JSON records of what was measured."""
