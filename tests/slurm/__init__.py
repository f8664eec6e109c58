"""Tests on a SLURM cluster of one node, which the tests start."""
