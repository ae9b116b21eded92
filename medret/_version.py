"""The version of medret."""

__version__ = "0.1.0"
