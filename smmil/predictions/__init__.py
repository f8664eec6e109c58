"""Trained runs to stored predictions of validation and test bags, with a sign-aware score beside the attention.

`one_bag` scores a single bag; `memory` moves bags to host memory, then to the CPU, when a device is full.
"""
