"""CT slices to three windows: our reader against plain pydicom + NumPy; uncompressed 512 x 512, 16 bits, signed.

In: nothing (a series is generated), or `--series FOLDER` of one. Out: a table, or with `--json` a list of {name, ours,
peer, ratio, target, unit}; CPU time per slice. Ours is what the features stage calls (`preprocessing.ct.read_slices`,
checks and repairs included). Every slice is compared before anything is timed: identical bits.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.timing import Step, add_arguments, scale_of
from bench.trials import Different, Trial, run_trials
from preprocessing.cli import guard, setup_logging

SLICES, SIDE, TARGET = 40, 512, 3.0
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))


def write_series(folder: Path, n: int) -> list[str]:
    """A head-like series: discs of bone and brain in air, noise, and the tags of a scanner."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng, (y, x) = np.random.default_rng(0), np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    study, series, names = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"]), []
    for number in range(n):
        radius = np.hypot(x, y * 0.85)
        hu = np.where(radius < 0.7, 35.0, np.where(radius < 0.78, 900.0, -1000.0)) + rng.normal(0, 12, x.shape)
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"slice {number}"])
        tags: dict[str, Any] = {
            **{"SOPClassUID": CTImageStorage, "SOPInstanceUID": data.file_meta.MediaStorageSOPInstanceUID},
            **{"StudyInstanceUID": study, "SeriesInstanceUID": series, "Modality": "CT", "PatientID": "bench"},
            **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": SIDE, "Columns": SIDE},
            **{"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1},
            **{"RescaleSlope": 1, "RescaleIntercept": -1024, "PixelSpacing": [0.49, 0.49]},
            **{"ImagePositionPatient": [0, 0, 5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            **{"WindowCenter": 40, "WindowWidth": 80, "InstanceNumber": number + 1},
        }
        for name, value in tags.items():
            setattr(data, name, value)
        data.PixelData = np.clip(hu + 1024, 0, 4095).astype("<i2").tobytes()
        data["PixelData"].VR = "OW"
        names.append(f"slice{number:03d}.dcm")
        data.save_as(folder / names[-1], enforce_file_format=True)
    return names


def read_all(folder: Path, names: Sequence[str]) -> Any:
    """Our slices."""
    from preprocessing.ct import read_slices

    attrs = {"files": list(names), "windows": [list(window) for window in WINDOWS], "slice_px": SIDE}
    return read_slices(folder, attrs)


def peer_slices(folder: Path, names: Sequence[str]) -> Any:
    """The peer's slices."""
    from bench.peer_readers import dicom_windows

    return (dicom_windows(folder / name, WINDOWS) for name in names)


def same_slices(folder: Path, names: Sequence[str], *_: object) -> None:
    """Raises `Different` unless every value of every slice is equal."""
    for name, ours, theirs in zip(names, read_all(folder, names), peer_slices(folder, names), strict=True):
        if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
            raise Different(f"{name}: windows differ from pydicom's by {np.abs(ours - theirs).max():.3g}")


def sides(folder: Path, names: Sequence[str]) -> tuple[Step, Step]:
    """All slices, ours and the peer's."""
    return (
        lambda: deque(read_all(folder, names), maxlen=0),
        lambda: deque(peer_slices(folder, names), maxlen=0),
    )


def trials(folder: Path, names: Sequence[str]) -> list[Trial]:
    """One trial."""
    work, check = partial(sides, folder, names), partial(same_slices, folder, names)
    name = f"{len(names)} uncompressed slices to three windows"
    return [Trial("windows", name, work, TARGET, check, len(names), "ms per slice")]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.dicom", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--series", type=Path, help="a folder with one series of 512 x 512 slices")
    arguments = parser.parse_args(argv)
    setup_logging()
    with tempfile.TemporaryDirectory(prefix="bench-dicom-") as made:
        if arguments.series:
            folder, names = arguments.series, sorted(p.name for p in arguments.series.iterdir() if p.is_file())
        else:
            folder, names = Path(made), write_series(Path(made), max(2, round(SLICES * scale_of(arguments))))
        return run_trials(trials(folder, names), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
