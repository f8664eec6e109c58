"""The version of every stage from training on; incrementing one redoes its results, a cosmetic edit redoes nothing."""

RUNS = 2
PREDICTIONS = 3
METRICS = 4
TABLES = 8
COMPARISONS = 5
FIGURES = 7
MAPS = 7
ANALYSIS = 1
REPORT = 10
