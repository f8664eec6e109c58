"""One new slide or scan: label, attention map and GeoJSON from trained runs."""
