"""Stored bags to packed batches: sources, labels, splits and the cache that holds a data set in memory.

`BagBatch` (`batch`) is what every method receives.
"""
