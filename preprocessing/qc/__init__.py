"""Contact sheets: what was cut out of every bag, the oddest bags first."""
