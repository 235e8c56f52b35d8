"""Measuring: suites, clocks, peers and records."""
