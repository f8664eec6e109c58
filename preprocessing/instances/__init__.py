"""Bags to instances: positions, neighbours and coverage of the tiles of a slide or the slices of a scan."""
