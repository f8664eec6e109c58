"""Metrics to the paper's tables: cells, rows and notes, written as CSV, Markdown, LaTeX and HTML."""
