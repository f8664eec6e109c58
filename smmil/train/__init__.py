"""Training: one job per (data set, encoder, method), every run resumable and skipped once it is finished.

`fit` is the loop, `specs` turns a job's options into runs, `progress` reports to a person.
"""
