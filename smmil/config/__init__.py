"""The typed configuration: sections, methods, quirks, variants, and the trainings behind each table and figure.

Nothing heavy is imported here, so that a dry run is quick.
"""
