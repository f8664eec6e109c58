"""Tiny CT slices and whole-slide images written with pydicom."""

import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
)

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
        uid = f"1.2.3.1{zlib.crc32(f'{path.name} {z}'.encode()):010d}"
        slice_dataset(pixels, z, **{"SOPInstanceUID": uid, **tags}).save_as(path, enforce_file_format=True)
    finally:
        config.settings.writing_validation_mode, config.settings.reading_validation_mode = before
    return path


def write_dicom_slide(path: Path, levels: list[npt.NDArray[Any]], mpp: float, tile: int = 128, **tags: Any) -> None:
    """Write a whole-slide image, one file per level: `path` with 0, 1, ... before its suffix; tiles are JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        height, width = level.shape[:2]
        scale = mpp * levels[0].shape[1] / width / 1000
        padded = np.full((-(-height // tile) * tile, -(-width // tile) * tile, 3), 255, np.uint8)
        padded[:height, :width] = level
        tiles = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
        data = slice_dataset(padded[:tile, :tile], ImagePositionPatient=None, ImageOrientationPatient=None)
        spacing, measures, optics = Dataset(), Dataset(), Dataset()
        spacing.PixelSpacing, spacing.SliceThickness = [scale, scale], 0.001
        measures.PixelMeasuresSequence, optics.OpticalPathIdentifier = [spacing], "1"
        shared: dict[str, Any] = {
            "SOPClassUID": VLWholeSlideMicroscopyImageStorage,
            "SOPInstanceUID": f"1.2.4.{number}",
            "SeriesInstanceUID": "1.2.40",
            "SeriesNumber": 1,
            "FrameOfReferenceUID": "1.2.41",
            "Modality": "SM",
            "ImageType": ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"],
            "DimensionOrganizationType": "TILED_FULL",
            "NumberOfFrames": len(tiles),
            "PhotometricInterpretation": "YBR_FULL_422",
            "ImagedVolumeWidth": width * scale,
            "ImagedVolumeHeight": height * scale,
            "TotalPixelMatrixColumns": width,
            "TotalPixelMatrixRows": height,
            "TotalPixelMatrixFocalPlanes": 1,
            "NumberOfOpticalPaths": 1,
            "OpticalPathSequence": [optics],
            "SharedFunctionalGroupsSequence": [measures],
            **tags,
        }
        for name, value in shared.items():
            setattr(data, name, value)
        data.PixelData = encapsulate([imagecodecs.jpeg8_encode(part, level=90) for part in tiles])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(path.with_name(f"{path.stem}{number}{path.suffix}"), enforce_file_format=True)
