"""Synthetic CT scans: DICOM with the faults of the real files, and blood exactly where the tables say."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from preprocessing.synthetic import head_ct, rsna
from tests.helpers.dataset_files import read_table

# the real files carry "ID_..." where the standard wants UIDs
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")


def read(path: Path) -> Any:
    data = pydicom.dcmread(path)
    data.decode()
    return data


def hounsfield(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """HU after the documented repairs, and where the padding was."""
    px, intercept = data.pixel_array.astype(np.int64), float(data.RescaleIntercept)
    padding = (px == rsna.PADDING) | (px == 65536 + rsna.PADDING)
    if data.BitsStored == 12 and data.PixelRepresentation == 0 and intercept > -100:
        px = px + 1000
        px[px >= 4096] -= 4096
        intercept = -1000.0
    hu = px * float(data.RescaleSlope) + intercept
    hu[padding] = -1000
    return hu, padding


@pytest.fixture(scope="session")
def studies(tiny) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((tiny["rsna"] / "stage_2_train").iterdir()):
        data = read(path)
        assert data.SOPInstanceUID == path.stem
        out[data.StudyInstanceUID].append(data)
    return out


@pytest.fixture(scope="session")
def slice_labels(tiny) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = defaultdict(dict)
    for row in read_table(tiny["rsna"] / "stage_2_train.csv"):
        name, subtype = row["ID"].rsplit("_", 1)
        assert out[name].setdefault(subtype, int(row["Label"])) == int(row["Label"])
    return out


def height(data: Any) -> float:
    orientation = np.array(data.ImageOrientationPatient, float)
    return float(np.array(data.ImagePositionPatient, float) @ np.cross(orientation[:3], orientation[3:]))


def test_geometry_orders_the_slices_and_names_do_not(studies):
    tilts = set()
    for slices in studies.values():
        heights = [height(d) for d in slices]
        assert np.diff(sorted(heights)).min() > 0.5
        assert heights != sorted(heights) and heights != sorted(heights, reverse=True)
        assert all("InstanceNumber" not in d and "PatientName" not in d for d in slices)
        assert len({d.SeriesInstanceUID for d in slices}) == len({d.PatientID for d in slices}) == 1
        tilts.add(float(slices[0].ImageOrientationPatient[5]) != 0)
        # The skull base has air cells and orbits, the vertex is the smallest section.
        ordered = [hounsfield(d)[0] for d in sorted(slices, key=height)]
        heads = [(hu > -200).sum() for hu in ordered]
        assert heads[-1] < 0.75 * max(heads)
    assert tilts == {True, False}


def test_hounsfield_units_are_right_after_the_documented_repairs(studies):
    kinds, slopes, mixed, padded = set(), set(), False, 0
    for slices in studies.values():
        kinds.add((slices[0].BitsStored, slices[0].PixelRepresentation))
        slopes |= {float(d.RescaleSlope) for d in slices}
        mixed |= len({float(d.RescaleIntercept) for d in slices}) > 1
        for data in slices:
            hu, padding = hounsfield(data)
            padded += bool(padding.any())
            m = hu.shape[0]
            assert (hu[: m // 20] < -900).mean() > 0.95, "air above the head"
            assert np.percentile(hu[hu > 300], 50) > 500 and (hu > 300).mean() > 0.01, "skull"
            brain = hu[m // 2 - 3 : m // 2 + 4, m // 2 - 3 : m // 2 + 4]
            assert -30 < np.median(brain) < 90, "brain or ventricle in the middle"
            assert hu.min() >= -1100 and hu.max() < 3000
            if padding.any():
                assert padding[0, 0] and padding[-1, -1] and not padding[m // 2, m // 2]
    assert kinds == {(16, 1), (16, 0), (12, 0)}
    assert slopes == {1.0, 0.5} and mixed and padded


def test_haemorrhages_are_contiguous_and_equal_the_table(studies, slice_labels):
    assert set(slice_labels) == {d.SOPInstanceUID for slices in studies.values() for d in slices}
    positive = 0
    for slices in studies.values():
        ordered = sorted(slices, key=height)
        for data in ordered:
            labels = slice_labels[data.SOPInstanceUID]
            assert labels["any"] == max(v for k, v in labels.items() if k != "any") and len(labels) == 6
        flags = np.array([slice_labels[d.SOPInstanceUID]["any"] for d in ordered])
        if flags.any():
            positive += 1
            assert np.abs(np.diff(flags)).sum() <= 2 and 3 <= flags.sum() <= 8
    assert 0 < positive < len(studies)


@pytest.mark.parametrize("subtype", head_ct.SUBTYPES)
def test_blood_is_dense_and_only_where_the_label_says(subtype):
    n, low, high = 22, *head_ct.EXTENT[subtype]
    for seed in range(3):
        room = int(np.floor(high * (n - 1))) - int(np.ceil(low * (n - 1))) + 1
        first = int(np.ceil(low * (n - 1))) + seed % max(1, room - 5)
        bleed = head_ct.Bleed(subtype, first, first + min(5, room) - 1)
        healthy = head_ct.draw_head(np.random.default_rng(seed), n, 64, ())
        sick = head_ct.draw_head(np.random.default_rng(seed), n, 64, (bleed,))
        changed = np.abs(sick - healthy) > 5
        labelled = np.zeros(n, bool)
        labelled[bleed.first : bleed.last + 1] = True
        assert not changed[~labelled].any()
        assert changed[labelled].sum((1, 2)).min() >= 3
        assert (sick - healthy)[changed].mean() > 8
        # Beside the skull the mean of blood and bone is denser than blood.
        assert 35 < np.median(sick[changed & (healthy < 70)]) < 80


def test_rsna_tables(tiny, studies, slice_labels):
    lines = (tiny["rsna"] / "stage_2_train.csv").read_text().splitlines()
    assert len(lines) - len(set(lines)) == 6 * rsna.DUPLICATED_SLICES
    test = read_table(tiny["rsna"] / "test_scans.csv")
    bags = {r["bag_name"] for r in test}
    assert bags < set(studies)
    assert {r["bag_label"] for r in test} == {"0", "1"}
    for bag in bags:
        slices_of_bag = [r for r in test if r["bag_name"] == bag]
        ordered = [f"{d.SOPInstanceUID}.dcm" for d in sorted(studies[bag], key=height)]
        assert [r["instance_name"] for r in sorted(slices_of_bag, key=lambda r: int(r["order"]))] == ordered
        assert all(int(r["instance_label"]) == slice_labels[r["instance_name"][:-4]]["any"] for r in slices_of_bag)
        assert int(slices_of_bag[0]["bag_label"]) == max(int(r["instance_label"]) for r in slices_of_bag)
    patients = defaultdict(set)
    for study, slices in studies.items():
        patients[slices[0].PatientID].add(study)
    assert max(len(s) for s in patients.values()) == 2
    assert all(len({study in bags for study in s}) == 1 for s in patients.values()), "a patient in train and test"


def test_elements_are_those_of_a_real_slice(tiny, shared_data):
    real = read(shared_data / "rsna" / "ID_000012eaf.dcm")
    ours = read(sorted((tiny["rsna"] / "stage_2_train").iterdir())[0])
    assert {e.keyword for e in ours} == {e.keyword for e in real}
    assert ours.file_meta.TransferSyntaxUID == real.file_meta.TransferSyntaxUID
    assert [e.VR for e in ours] == [e.VR for e in real]
