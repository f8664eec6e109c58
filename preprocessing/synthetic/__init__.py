"""Miniature cohorts in the real raw formats: CAMELYON16, PANDA and RSNA, seeded and of any size.

`python -m preprocessing.synthetic --out DIR --size tiny|demo|benchmark` draws slides and scans, annotations, label
tables and splits exactly as the three public data sets lay them out, traps included, so that the whole pipeline runs
and is tested without downloading anything. Nothing in the pictures comes from a patient.

`sizes` holds the parameters, `cohort` the folders that finish once and resume, `camelyon16`, `panda` and `rsna` the
layouts, `lymph_node`, `biopsy` and `head_ct` the pictures, `texture` and `tiff` what they share.
"""
