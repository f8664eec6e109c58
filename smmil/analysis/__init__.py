"""Results bag by bag: tables in long form, curves, calibration, confusion, wrong bags and patients."""
