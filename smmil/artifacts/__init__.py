"""What the stages leave on disk for one another: runs, logs, predictions and metrics, each read by one reader.

Hashes, code version and package versions lie beside every result.
"""
