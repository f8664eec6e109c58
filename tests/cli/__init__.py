"""Tests of `smmil.cli`."""
