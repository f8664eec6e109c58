"""Miniature cohorts in the real raw formats of CAMELYON16, PANDA and RSNA, seeded and of any size.

`python -m preprocessing.synthetic --out DIR --size tiny|demo|benchmark` draws slides and scans with their annotations,
label tables and splits, laid out as the three public data sets are, faults included, so that the whole pipeline runs
and is tested without downloads. No picture comes from a patient.
"""
