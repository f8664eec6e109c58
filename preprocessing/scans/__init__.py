"""CT scans: DICOM folders and series, decoders, anatomical order, Hounsfield units and display windows."""
