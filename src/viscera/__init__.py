"""viscera: one text-driven model for every organ and tumour in CT."""

__version__ = "0.1.0"
