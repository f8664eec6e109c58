"""The list of bags (bags.csv), its checks, settings of single bags, and the shards a job works through.

`shards` is the one place where a failure of a single bag is caught.
"""
