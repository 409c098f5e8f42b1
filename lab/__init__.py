"""Everystep: a lab for looking inside a network while it trains."""

__version__ = "0.1.0"
