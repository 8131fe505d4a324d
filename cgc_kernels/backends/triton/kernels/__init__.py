"""Triton kernels and what launches them, one file per stage; imported when one first runs."""
