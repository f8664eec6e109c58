"""Bags in; trained models, predictions, tables, figures and maps out."""

__version__ = "0.1.0"
