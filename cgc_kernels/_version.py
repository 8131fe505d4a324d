"""The version, in one place; setup reads this file."""

__version__ = "0.1.0"
