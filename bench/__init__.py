"""Benchmarks: every backend against its peers and its floor (docs/performance.md)."""
