"""Trained runs to stored predictions of validation and test bags, with a sign-aware score beside the attention.

`one_bag` scores a single bag; `each_bag` is the boundary that keeps one bad bag from ending a job.
"""
