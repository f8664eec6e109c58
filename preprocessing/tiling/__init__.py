"""Where a slide's tiles lie: tissue masks, CLAM's contour lattices, PANDA's windows, coverage by annotations."""
