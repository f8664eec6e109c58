"""Tests of `--use-conda` with a stand-in for the conda client."""
