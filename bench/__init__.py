"""Benchmarks: every entry against its peers and its floor (docs/performance.md)."""
