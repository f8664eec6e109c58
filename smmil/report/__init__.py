"""One HTML page with every table, figure and map of an experiment."""
