"""The version of every stage from training on; incrementing one redoes its results, a cosmetic edit redoes nothing."""

RUNS = 1
PREDICTIONS = 2
METRICS = 3
TABLES = 4
COMPARISONS = 3
FIGURES = 3
MAPS = 3
REPORT = 4
