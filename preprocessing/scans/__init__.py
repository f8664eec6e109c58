"""CT series: DICOM headers, anatomical order, Hounsfield units and display windows."""
