"""Measurements: speed against other implementations, and tasks whose right answer is known."""
