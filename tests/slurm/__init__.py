"""Tests on a one-node SLURM cluster that the tests start themselves."""
