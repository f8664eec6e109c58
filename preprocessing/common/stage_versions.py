"""The version of every preprocessing stage; incrementing one redoes what the stage stores, a cosmetic edit does not."""

INSTANCES = 4
FEATURES = 2
IMPORT = 1
QC = 4
STATUS = 2
