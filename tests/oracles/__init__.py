"""Slow, obvious reference implementations the tests compare with."""
