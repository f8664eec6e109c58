"""The bag store (Zarr v3): schema, atomic writes, reads by path, checks of stored arrays.

One group per bag; instances and features are separate trees, paired by a hash of the coordinates.
"""
