"""Layers that several methods share: pooling and segment reductions, attention, graph layers.

All of them work on packed bags: (M, D) instances and (B + 1,) offsets.
"""
