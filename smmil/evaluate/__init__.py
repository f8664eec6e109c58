"""Predictions to metrics: AUROC, F1, FROC, calibration, bootstrap intervals, paired and rank tests."""
