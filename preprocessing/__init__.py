"""Raw slides and scans in, bags of instances and features out."""
