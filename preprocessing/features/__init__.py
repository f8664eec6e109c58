"""Instances to features: one decoding pass for all encoders, pretrained or seeded random weights."""
