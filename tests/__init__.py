"""Tests: oracles, limits, invariances, and the whole pipeline on miniature cohorts."""
