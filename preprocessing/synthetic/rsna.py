"""A miniature RSNA intracranial haemorrhage set in the layout of the challenge's download.

`stage_2_train/ID_<9 hex>.dcm` (random names, so that alphabetical order is not anatomical; position and orientation but
no InstanceNumber), `stage_2_train.csv` (ID,Label with six rows per slice and some exact duplicates) and
`test_scans.csv` (instance_label, instance_name, bag_name, bag_label, order, as the published test lists). Studies use
the encodings that occur in the real set. Identifiers are random and belong to nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from preprocessing.synthetic.cohort import Item, Plan, hex_id, put, stream
from preprocessing.synthetic.head_ct import EXTENT, SUBTYPES, Bleed, draw_head
from preprocessing.synthetic.sizes import RsnaSize

Stored = npt.NDArray[np.int16] | npt.NDArray[np.uint16]
# stored outside the round field of view, as in the real set
PADDING = -2000
DUPLICATED_SLICES = 2
TWO_STUDIES_SHARE = 0.08


@dataclass(frozen=True)
class ScanSpec:
    """One study: identifiers, geometry, encoding and haemorrhages; `files` run from base to vertex."""

    seed: int
    index: int
    patient: str
    study: str
    series: str
    files: tuple[str, ...]
    matrix: int
    spacing: tuple[float, ...]
    test: bool
    bleeds: tuple[Bleed, ...]
    bleed_scale: float = 1.0
    blood_hu: tuple[float, float] = (47.0, 66.0)
    tilt: float = 0.0
    encoding: str = "signed"
    padded: bool = False

    def labels(self) -> npt.NDArray[np.bool_]:
        """Return (slices, 5) labels by subtype."""
        out = np.zeros((len(self.files), len(SUBTYPES)), bool)
        for bleed in self.bleeds:
            out[bleed.first : bleed.last + 1, SUBTYPES.index(bleed.subtype)] = True
        return out


def plan_bleeds(rng: np.random.Generator, n: int, slices: tuple[int, int]) -> tuple[Bleed, ...]:
    """Draw one haemorrhage over `slices` (min, max) of n slices, sometimes with a second subtype within its range."""

    def room(subtype: str) -> tuple[int, int]:
        low, high = EXTENT[subtype]
        return int(np.ceil(low * (n - 1))), int(np.floor(high * (n - 1)))

    subtype = SUBTYPES[int(rng.integers(len(SUBTYPES)))]
    low, high = room(subtype)
    length = min(int(rng.integers(slices[0], slices[1] + 1)), high - low + 1)
    first = int(rng.integers(low, high - length + 2))
    bleeds = [Bleed(subtype, first, first + length - 1)]
    other = SUBTYPES[int(rng.integers(len(SUBTYPES)))]
    if other != subtype and rng.random() < 0.3:
        start, stop = max(first, room(other)[0]), min(first + length - 1, room(other)[1])
        if stop - start >= 1:
            bleeds.append(Bleed(other, start, stop))
    return tuple(bleeds)


def encodings(rng: np.random.Generator, scans: int) -> list[str]:
    """Draw the encoding of every study.

    "signed" has intercept -1024, "zero" intercept 0, "mixed" either per slice, "half" slope 0.5. "unsigned" stores the
    padding as 63536. "twelve" has 12 unsigned bits, intercept 0 and HU that wrap around, which readers must repair.
    """
    rare = ["twelve", "unsigned", "half"] + ["mixed"] * max(1, scans // 4) + ["zero"] * max(1, scans // 8)
    out = rare + ["signed"] * (scans - len(rare))
    return [out[k] for k in rng.permutation(scans)]


def test_scans(rng: np.random.Generator, size: RsnaSize, patient: list[int], positive: list[bool]) -> set[int]:
    """Draw the studies of the test part, stratified by label; patients with two studies stay in training."""
    chosen: set[int] = set()
    for label in (False, True):
        members = [k for k in range(size.scans) if positive[k] == label]
        single = [k for k in members if patient.count(patient[k]) == 1]
        order = rng.permutation(len(single))[: max(1, round(size.test_share * len(members)))]
        chosen |= {single[k] for k in order.tolist()}
    return chosen


def scan_specs(size: RsnaSize, seed: int) -> list[ScanSpec]:
    """Draw the parameters of every study."""
    rng = stream(seed, "rsna", "plan")
    pairs = max(1, round(size.scans * TWO_STUDIES_SHARE))
    patient = list(range(size.scans - pairs)) + list(range(pairs))
    count = max(2, round(size.scans * size.positive_share))
    positive = [bool(k < count) for k in rng.permutation(size.scans)]
    test = test_scans(rng, size, patient, positive)
    stored = encodings(rng, size.scans)
    specs = []
    for k in range(size.scans):
        study_rng = stream(seed, "rsna", "spec", k)
        n = int(study_rng.integers(size.slices[0], size.slices[1] + 1))
        thick = float(study_rng.choice([4.8, 5.0, 5.5])) * 26 / n
        # head protocols change from thin to thick slices above the skull base
        spacing = tuple(thick * (0.5 if k % 8 == 3 and i < n // 3 else 1.0) for i in range(n))
        specs.append(
            ScanSpec(
                seed=seed,
                index=k,
                patient=f"ID_{hex_id(8, seed, 'patient', patient[k])}",
                study=f"ID_{hex_id(10, seed, 'study', k)}",
                series=f"ID_{hex_id(10, seed, 'series', k)}",
                files=tuple(f"ID_{hex_id(9, seed, 'slice', k, i)}" for i in range(n)),
                matrix=size.matrix,
                spacing=spacing,
                tilt=float(study_rng.choice([0.0, 0.0, 1.0])) * float(np.round(study_rng.uniform(8, 22), 1)),
                encoding=stored[k],
                padded=bool(study_rng.random() < 0.75) and stored[k] != "twelve",
                test=k in test,
                bleeds=plan_bleeds(study_rng, n, size.bleed_slices) if positive[k] else (),
                bleed_scale=size.bleed_scale,
                blood_hu=size.blood_hu,
            )
        )
    return specs


def encode(hu: npt.NDArray[np.float32], encoding: str, intercept: int, outside: npt.NDArray[np.bool_]) -> Stored:
    """Turn HU (m, m) of one slice into stored values, int16 or uint16; `outside` the field of view lies padding."""
    slope = 0.5 if encoding == "half" else 1.0
    stored = np.rint((hu - intercept) / slope).astype(np.int32)
    if encoding == "twelve":
        return np.asarray(np.rint(hu).astype(np.int32) % 4096, np.uint16)
    stored[outside] = PADDING
    if encoding == "unsigned":
        return np.asarray(stored % 65536, np.uint16)
    return np.asarray(stored, np.int16)


def write_slice(folder: Path, spec: ScanSpec, k: int, stored: Stored, intercept: int, position: list[float]) -> None:
    """Write stored values (m, m) as one DICOM file with exactly the elements of the real files."""
    name, tilt = spec.files[k], np.deg2rad(spec.tilt)
    unsigned = stored.dtype == np.uint16
    bits = 12 if spec.encoding == "twelve" else 16
    pixel = round(240 / spec.matrix, 6)
    wide = spec.index % 6 == 5
    data = Dataset()
    for tag, vr, value in (
        (0x00080018, "UI", name),
        (0x00080060, "CS", "CT"),
        (0x00100020, "LO", spec.patient),
        (0x0020000D, "UI", spec.study),
        (0x0020000E, "UI", spec.series),
        (0x00200010, "SH", ""),
        (0x00200032, "DS", [f"{v:.6f}" for v in position]),
        (0x00200037, "DS", [f"{v + 0.0:.6f}" for v in (1, 0, 0, 0, np.cos(tilt), 0 - np.sin(tilt))]),
        (0x00280002, "US", 1),
        (0x00280004, "CS", "MONOCHROME2"),
        (0x00280010, "US", spec.matrix),
        (0x00280011, "US", spec.matrix),
        (0x00280030, "DS", [f"{pixel:.6f}"] * 2),
        (0x00280100, "US", 16),
        (0x00280101, "US", bits),
        (0x00280102, "US", bits - 1),
        (0x00280103, "US", 0 if unsigned else 1),
        (0x00281050, "DS", ["40", "40"] if wide else "30"),
        (0x00281051, "DS", ["80", "200"] if wide else "80"),
        (0x00281052, "DS", str(intercept)),
        (0x00281053, "DS", "0.5" if spec.encoding == "half" else "1"),
        (0x7FE00010, "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes()),
    ):
        # identifiers are no valid UIDs in the real set either
        data.add(DataElement(tag, vr, value, validation_mode=config.IGNORE))
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # computed on writing
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{int(hex_id(30, spec.seed, 'uid', name), 16)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.182345094578331")
    meta.ImplementationVersionName = "SYNTHETIC"
    data.file_meta = meta
    data.preamble = bytes(128)
    buffer = BytesIO()
    dcmwrite(buffer, data, enforce_file_format=False)
    put(folder / f"{name}.dcm", buffer.getvalue())


def make_scan(root: Path, spec: ScanSpec) -> None:
    """Write all slices of one study."""
    rng = stream(spec.seed, "rsna", "draw", spec.index)
    n, m = len(spec.files), spec.matrix
    volume = draw_head(rng, n, m, spec.bleeds, spec.bleed_scale, spec.blood_hu)
    axis = np.linspace(-1, 1, m)
    outside = (np.hypot(axis[:, None], axis[None, :]) > 1.0) if spec.padded else np.zeros((m, m), bool)
    heights = rng.uniform(-60, 120) + np.concatenate([[0.0], np.cumsum(spec.spacing[1:])])
    x, y = -120 + rng.normal(0, 4), -120 + rng.normal(0, 4)
    for k in range(n):
        intercept = -1024
        if spec.encoding in ("zero", "twelve") or (spec.encoding == "mixed" and rng.random() < 0.5):
            intercept = 0
        stored = encode(volume[k], spec.encoding, intercept, outside)
        write_slice(root / "stage_2_train", spec, k, stored, intercept, [x, y, float(heights[k])])


def labels_csv(specs: list[ScanSpec], seed: int) -> str:
    """Write the label table: six rows per slice, slices in alphabetical order, a few slices twice."""
    rows: dict[str, str] = {}
    for spec in specs:
        for name, flags in zip(spec.files, spec.labels().tolist(), strict=True):
            pairs = [*zip(SUBTYPES, flags, strict=True), ("any", any(flags))]
            rows[name] = "".join(f"{name}_{subtype},{int(flag)}\n" for subtype, flag in pairs)
    names = sorted(rows)
    again = stream(seed, "rsna", "twice").choice(len(names), DUPLICATED_SLICES, replace=False)
    for k in sorted(again.tolist(), reverse=True):
        names.insert(k + 1, names[k])
    return "ID,Label\n" + "".join(rows[name] for name in names)


def test_csv(specs: list[ScanSpec]) -> str:
    """Write the test list: slices from base to vertex, studies in alphabetical order."""
    lines = ["instance_label,instance_name,bag_name,bag_label,order"]
    for spec in sorted((s for s in specs if s.test), key=lambda s: s.study):
        for order, (name, labels) in enumerate(zip(spec.files, spec.labels(), strict=True)):
            lines.append(f"{int(labels.any())},{name}.dcm,{spec.study},{int(bool(spec.bleeds))},{order}")
    return "\n".join(lines) + "\n"


def plan_scans(specs: list[ScanSpec], seed: int, make: Callable[[Path, ScanSpec], None]) -> Plan:
    """Return the plan of the studies with the two tables."""
    items = [Item(spec.study, make, spec) for spec in specs]
    return Plan(items, {"stage_2_train.csv": labels_csv(specs, seed), "test_scans.csv": test_csv(specs)})


def plan(size: RsnaSize, seed: int) -> Plan:
    """Plan the studies and the two tables."""
    return plan_scans(scan_specs(size, seed), seed, make_scan)
