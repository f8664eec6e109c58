"""Tiny CT slices written with pydicom."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PATIENT = {"PatientName": "Marker^Secretname", "PatientID": "SECRETID77", "PatientBirthDate": "19010203"}


def slice_dataset(pixels: npt.NDArray[Any], z: float = 0.0, **tags: Any) -> Dataset:
    """Return a CT slice with plausible tags; keyword arguments replace tags, None removes them."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    signed = bool(np.issubdtype(pixels.dtype, np.signedinteger))
    values: dict[str, Any] = {
        "SOPInstanceUID": "1.2.3",
        "StudyInstanceUID": "1.2.10",
        "SeriesInstanceUID": "1.2.11",
        "Modality": "CT",
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [0.5, 0.5],
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "HighBit": pixels.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(signed),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImagePositionPatient": [0, 0, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        **PATIENT,
        **tags,
    }
    if pixels.ndim == 3:
        values.setdefault("PlanarConfiguration", 0)
    for name, value in values.items():
        if value is not None:
            setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    return data


def write_slice(path: Path, pixels: npt.NDArray[Any] | None = None, z: float = 0.0, **tags: Any) -> Path:
    """Write a slice, also with invalid UIDs, as the RSNA files have them."""
    if pixels is None:
        pixels = np.full((16, 16), 1024, dtype=np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = (config.settings.writing_validation_mode, config.settings.reading_validation_mode)
    config.settings.writing_validation_mode = config.IGNORE
    config.settings.reading_validation_mode = config.IGNORE
    try:
        slice_dataset(pixels, z, **tags).save_as(path, enforce_file_format=True)
    finally:
        config.settings.writing_validation_mode, config.settings.reading_validation_mode = before
    return path
