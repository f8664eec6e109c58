"""Fuzz: mutations of sound manifests, annotations, DICOM slices and TIFF slides, through the doors that users take.

Each case ends as a result or as one `ValueError` that names the file; no other exception, no hang, no file half
written, and no other bag is affected. A test run tries a few cases, the slow tests a thousand; `FUZZ_SEED=7` tries
others.
"""

import contextlib
import copy
import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from tifffile import TiffFile

from preprocessing.bags.__main__ import main as list_bags
from preprocessing.bags.rows import BagRow
from preprocessing.bags.shards import Outcome, attempt
from preprocessing.bags.table import read_bags
from preprocessing.common.options import InstanceOptions, parse_instance_options
from preprocessing.instances.stage import cut_bag
from preprocessing.store.bags import read_arrays
from smmil.predict import pipeline
from tests.helpers.annotations import INNER, SQUARE, asap, feature
from tests.helpers.cohorts import WSI, write_scan, write_slide
from tests.helpers.dicoms import PATIENT, write_slice
from tests.helpers.pyramids import texture

SECONDS = 10
CUT: InstanceOptions = parse_instance_options(json.dumps({"wsi": WSI, "ct": {"slice_px": 16}}))
OLD = "the list of bags of an earlier run\n"
SECRETS = ("Secretname", "SECRETID", PATIENT["PatientBirthDate"])
Mutate = Callable[[st.DataObject, Path], str]


class Unexpected(BaseException):
    """A case that takes too long or raises anything but `ValueError`; no `except Exception` may hide it."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Interrupt a case after `SECONDS`."""

    def stop(*_: object) -> None:
        raise Unexpected(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A sound dataset: a slide with annotations and a mask, a scan with slice labels, two series, a manifest."""
    root = tmp_path_factory.mktemp("sound")
    write_slide(root / "slide.tif", texture(192, 256), tile=64)
    write_scan(root / "scan", slices=3)
    write_scan(root / "two/a", slices=1, SeriesNumber=2, SeriesInstanceUID="1.2.2")
    write_scan(root / "two/b", slices=1, SeriesNumber=3, SeriesInstanceUID="1.2.3")
    write_slice(root / "sound.dcm")
    outlines = [feature([SQUARE]), feature([INNER], "Exclusion"), feature([[[9, 9], [9, 60], [60, 9]]], "Ignore*")]
    collection = {"type": "FeatureCollection", "features": outlines}
    (root / "slide.geojson").write_text(json.dumps(collection))
    (root / "slide.xml").write_text(asap([("_0", "Polygon", SQUARE), ("_2", "Polygon", INNER)]))
    (root / "labels.csv").write_text("file,label\n1.dcm,0\n2.dcm,1\n")
    (root / "manifest.csv").write_text(
        "bag_id,image,label,split,annotation,mpp,group,modality,note,skip,sthresh,mthresh,a_t\n"
        "slide,slide.tif,1,train,slide.geojson,0.5,anna,wsi,first,,12,3,0\n"
        "again,slide.tif,1,train,slide.xml,,anna,,,,,,\n"
        "scan,scan,1,test,labels.csv,,bob,ct,,,,,\n"
        "series,two#3,0,test,,,carl,,,,,,\n"
        "gone,gone.svs,0,train,,,,,,pen marks,,,\n"
    )
    return root


# --- mutations ------------------------------------------------------------------------------------------------------

TEXTS = [
    *("", " ", "0", "1", "-1", "2", "1.0", "0,25", "1e400", "nan", "inf", "-0", "1_0", "0x1", "True", "None", "null"),
    *(",", ";", "\t", '"', "'", '""', "\n", "\r", "a\nb", "|", "a|b", "#", "#1", "two#2", "two#9", "two#", "scan#1"),
    *("scan#" + "9" * 40, "scan#-1", "scan#²", "two#３", "scan/1.dcm", "scan/", "./scan", "scan/../two", "..", "/"),
    *("../x", "/etc/passwd", "~", "C:\\a", ".", "slide.tif", "slide.geojson", "slide.xml", "slices:010", "slices:"),
    *("slices:2", "labels.csv", "manifest.csv", "train", "test", "Train", "wsi", "ct", "CT", "slide", "SLIDE", "again"),
    *("x" * 300, "é", "e\u0301", "\u202e", "\u2028", "\ufeff", "\U0001f4a9", "=1+1", "\0", "a\0b", "\x1b[31m", "%s{}"),
    *("bag_id", "label", "mask", "1" * 5000, "9" * 20, "0.05", "21", "bwh_biopsy", r"\xe4", r"\x2e\x2e/x", "\x85"),
]


def save(data: st.DataObject, path: Path, content: bytes) -> None:
    """Write a file, in one case of four with some bytes cut, changed, inserted, removed, repeated or zeroed."""
    if data.draw(st.integers(0, 3)):
        path.write_bytes(content)
        return
    for _ in range(data.draw(st.integers(1, 3))):
        at, n = data.draw(st.integers(0, len(content))), data.draw(st.sampled_from([0, 1, 2, 4, 64, len(content)]))
        part = content[at : at + n]
        new = data.draw(st.sampled_from([b"", 2 * part, bytes(len(part))]) | st.binary(max_size=4))
        content = content[:at] + new + content[at + n :]
    path.write_bytes(content)


def edit_manifest(data: st.DataObject, root: Path) -> str:
    """Change cells, lines or bytes of the manifest."""
    path = root / "manifest.csv"
    table = [line.split(",") for line in path.read_text().splitlines()]
    for _ in range(data.draw(st.integers(0, 3))):
        row = data.draw(st.sampled_from(table))
        cell = data.draw(st.integers(0, len(row) - 1))
        text = data.draw(
            st.sampled_from(TEXTS) | st.text(max_size=8) | st.sampled_from(data.draw(st.sampled_from(table)))
        )
        match data.draw(st.sampled_from(["cell", "cell", "cell", "drop", "add", "copy", "column"])):
            case "drop" if len(row) > 1:
                del row[cell]
            case "add":
                row.insert(cell, text)
            case "copy":
                table.append([*row])
            case "column":
                for other in table:
                    other.append(text)
            case _:
                row[cell] = text
    joint = data.draw(st.sampled_from(",,,,;"))
    save(data, path, "\n".join(joint.join(row) for row in table).encode("utf-8", "surrogatepass"))
    return "manifest.csv"


JUNK: list[Any] = [
    *(None, True, 0, -1, 1e308, 10**400, float("nan"), float("inf"), 0.5, "", "1,5", "Tumor", "\ud800", "x" * 5000, []),
    *({}, [[]], [[[]]], [None], [[None]], [1], [1, 2], [[1, 2]], [[[1, 2]] * 3], {"type": "Point"}, {"name": 3}, "*"),
    *({"type": "Polygon"}, {"type": "GeometryCollection", "geometries": [None, 3]}, [[0, 0], [9, 9], [0, 9], [9, 0]]),
    *([[[0, 0, 1], [9, 9]]], {"names": []}, {"names": [1]}, "Region*", "root", "cell", "_2", 1e9, -1e9, "null", ":"),
]
KEYS = ["type", "geometry", "coordinates", "properties", "features", "geometries", "childObjects", "id", "root", "name"]


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *nodes(value[key])]]


def edit_geojson(data: st.DataObject, root: Path) -> str:
    """Change values, keys, lists or bytes of a GeoJSON annotation."""
    path = root / "slide.geojson"
    box = [json.loads(path.read_text())]
    for _ in range(data.draw(st.integers(0, 3))):
        holder, key = data.draw(st.sampled_from(nodes(box)))
        other, place = data.draw(st.sampled_from(nodes(box)))
        match data.draw(st.sampled_from(["value", "value", "remove", "wrap", "repeat", "key", "swap"])):
            case "remove" if holder is not box:
                del holder[key]
            case "wrap":
                holder[key] = [holder[key]]
            case "repeat" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case "key" if isinstance(holder, dict):
                holder[data.draw(st.sampled_from(KEYS))] = holder.pop(key)
            case "swap":
                holder[key] = copy.deepcopy(other[place])
            case _:
                holder[key] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    save(data, path, json.dumps(box[0]).encode())
    return "slide.geojson"


def edit_asap(data: st.DataObject, root: Path) -> str:
    """Change words or bytes of an ASAP annotation."""
    path = root / "slide.xml"
    text = path.read_text()
    for _ in range(data.draw(st.integers(0, 3))):
        spots = [match.span() for match in re.finditer(r'\w+(?==")|(?<=")[^"]*(?=")|</?\w+|/?>', text)]
        start, stop = data.draw(st.sampled_from(spots))
        words = [[text[slice(*spot)] for spot in spots], [*TEXTS, "<a/>", "&b;", "&#0;"]]
        text = text[:start] + data.draw(st.sampled_from(data.draw(st.sampled_from(words)))) + text[stop:]
    save(data, path, text.encode("utf-8", "surrogatepass"))
    return "slide.xml"


TAGS = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber Modality SamplesPerPixel ImageType "
    "PhotometricInterpretation Rows Columns PixelSpacing BitsAllocated BitsStored HighBit PixelRepresentation "
    "RescaleSlope RescaleIntercept RescaleType ImagePositionPatient ImageOrientationPatient PixelPaddingValue "
    "PixelPaddingRangeLimit NumberOfFrames PlanarConfiguration SliceThickness AcquisitionNumber SeriesDescription "
    "SpecificCharacterSet PatientID KVP PixelData ConvolutionKernel InstanceNumber FloatPixelData Manufacturer"
).split()
VALUES = [
    *(b"", b" ", b"\0", b"1", b"-1", b"0", b"2", b"1\\2", b"0\\0\\5", b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\0\\0", b"nan"),
    *(b"inf", b"1e400", b"0,5", b"abc", b"9" * 20, b"1" * 400, b"\xff\xfe", b"\0\0", b"\1\0", b"\x10\0", b"\xff\xff"),
    *(b"\0" * 8, b"\xe4\r\n\t", b"MR", b"SR", b"CT", b"SM", b"RGB", b"LOCALIZER", b"ORIGINAL\\PRIMARY\\LOCALIZER"),
    *(b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.1.3.10", b"ISO 2022 IR 149"),
    *(b"A^B", b"\\", b"\\\\", b"1.2.840.10008.5.1.4.1.1.88.67", b"YBR_FULL_422", b"\x40\x42\x0f\0" * 2),
]
KINDS = "CS DS IS US SS UL UI LO OB OW OF FD FL SQ UN AT PN UT TM".split()
SYNTAXES = [
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.3", ""),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 110, 201, 203)),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.7.1"),
]


def edit_slice(data: st.DataObject, root: Path) -> str:
    """Change elements or bytes of one slice of a scan."""
    path = root / "scan/2.dcm"
    header = pydicom.dcmread(path)
    for _ in range(data.draw(st.integers(0, 3))):
        tag = Tag(data.draw(st.sampled_from(TAGS)))
        match data.draw(st.sampled_from(["value", "value", "kind", "remove", "syntax"])):
            case "remove" if tag in header:
                del header[tag]
            case "syntax":
                header.file_meta.TransferSyntaxUID = data.draw(st.sampled_from(SYNTAXES))
            case action:
                known = tag in header and action == "value"
                kind = header.get_item(tag).VR if known else data.draw(st.sampled_from(KINDS))
                value = data.draw(st.sampled_from(VALUES))
                value += b" " * (len(value) % 2)
                header[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)
    buffer = io.BytesIO()
    try:
        header.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=True)
    except Exception:  # pydicom does not write every value that it reads
        buffer = io.BytesIO(path.read_bytes())
    save(data, path, buffer.getvalue())
    return "scan/2.dcm"


def edit_slide(data: st.DataObject, root: Path) -> str:
    """Change entries of the directories of a TIFF, or bytes anywhere in it."""
    path = root / "slide.tif"
    content = bytearray(path.read_bytes())
    with TiffFile(path) as tiff:
        entries = [tag.offset for page in tiff.pages for tag in page.tags]
    for _ in range(data.draw(st.integers(1, 2))):
        field, size = data.draw(st.sampled_from([(0, 2), (2, 2), (4, 4), (8, 4), (8, 2)]))
        at = data.draw(st.sampled_from(entries)) + field
        numbers = [0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 255, 256, 257, 65535, 1 << 20, 1 << 31, (1 << 32) - 1]
        number = data.draw(st.sampled_from(numbers) | st.integers(0, 1 << 16))
        content[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    save(data, path, bytes(content))
    return "slide.tif"


# --- doors ----------------------------------------------------------------------------------------------------------


def listing(root: Path, out: Path, name: str) -> list[BagRow] | None:
    """List the bags by the command; None if it is refused, which must be one message that names the file."""
    (out / "bags.csv").write_text(OLD)
    options = json.dumps({"manifest": str(root / "manifest.csv")})
    argv = ["--dataset", "mine", "--kind", "custom", "--root", str(root), "--options", options]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = list_bags([*argv, "--out", str(out / "bags.csv")])
    assert_private(errors.getvalue())
    if code == 0:
        return read_bags(out / "bags.csv")
    assert code == 2 and errors.getvalue().count("error: ") == 1 and name in errors.getvalue(), errors.getvalue()
    assert (out / "bags.csv").read_text() == OLD
    return None


def cut(row: BagRow, root: Path, out: Path, names: Sequence[str]) -> Outcome:
    """Cut a bag; a failure must be a `ValueError` that names one of the files, a result readable and plausible."""

    def work(row: BagRow) -> Outcome:
        try:
            return cut_bag(row, CUT, root, out / "instances", dataset="mine")
        except ValueError:
            raise
        except Exception as error:
            raise Unexpected(type(error).__name__) from error

    outcome = attempt(row, work)
    if outcome.state == "failed":
        assert any(name in outcome.reason for name in names), outcome.reason
    elif outcome.state != "skipped":
        share = read_arrays(out / "instances/store", row.bag_id)["coverage"]
        assert len(share) == outcome.n and ((share >= 0) & (share <= 1) | np.isnan(share)).all()
    return outcome


def assert_private(text: str) -> None:
    assert not any(secret in text for secret in SECRETS), text


def manifest_case(root: Path, out: Path, name: str) -> None:
    """No line of the manifest is lost, and no cell moves to another column."""
    rows = listing(root, out, name)
    if rows is None:
        return
    text = (root / name).read_text(encoding="utf-8-sig")
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text, newline=""))]
    head, *others = [line for line in lines if any(line)]
    written = [dict(zip(head, line, strict=False)) for line in others]
    expected = {(line["bag_id"], line["label"], line["split"]) for line in written}
    assert {(row.bag_id, "" if row.label is None else str(row.label), row.split) for row in rows} == expected
    for row in rows:
        cut(row, root, out, [row.bag_id, row.annotation or row.images[0], *row.images])


def annotation_case(root: Path, out: Path, name: str) -> None:
    row = BagRow("slide", "wsi", ("slide.tif",), 1, annotation=name, annotation_complete=True)
    cut(row, root, out, [name])


def scan_case(root: Path, out: Path, name: str) -> None:
    """The other bag is listed and cut, a slice left out is named, and predict reads the folder as the listing does."""
    (root / "manifest.csv").write_text("bag_id,image,label,split\nsound,sound.dcm,0,train\nscan,scan,,\n")
    rows = listing(root, out, name)
    assert rows is not None and [row.bag_id for row in rows] == ["scan", "sound"]
    assert cut(rows[1], root, out, []).state == "ok"
    outcome = cut(rows[0], root, out, [name, "'scan'"])
    assert outcome.state == "failed" or outcome.n == 3 or (outcome.n == 2 and name in str(outcome)), outcome
    assert_private(f"{rows} {outcome} {(out / 'bags.report.json').read_text()}")
    try:
        where, image = pipeline._located(root / "scan")
        row = pipeline._list_image(where, image, out / "predict", "mine", None, None, "ct")
    except ValueError as error:
        assert name in str(error), error
        return
    again = cut(row, where, out / "predict", [name, "'scan'"])
    assert (again.state, again.n, again.hash) == (outcome.state, outcome.n, outcome.hash)


def slide_case(root: Path, out: Path, name: str) -> None:
    cut(BagRow("slide", "wsi", (name,), 0), root, out, [name])


CASES: dict[str, tuple[Mutate, Callable[[Path, Path, str], None], int, int]] = {
    "manifest": (edit_manifest, manifest_case, 10, 250),
    "geojson": (edit_geojson, annotation_case, 15, 250),
    "asap": (edit_asap, annotation_case, 10, 150),
    "slice": (edit_slice, scan_case, 10, 200),
    "slide": (edit_slide, slide_case, 10, 150),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("much", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "thousand"])
@pytest.mark.parametrize("kind", CASES)
def test_a_mutation_is_read_or_refused_by_name(raw, tmp_path, kind, much, caplog):
    mutate, check, few, many = CASES[kind]

    cases = many if much else few

    @seed(int(os.environ.get("FUZZ_SEED", "0")))
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        caplog.clear()
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        root, out = tmp_path / "case/raw", tmp_path / "case/out"
        out.mkdir(parents=True)
        shutil.copytree(raw, root)
        name = mutate(data, root)
        with in_time():
            check(root, out, name)
        assert not [path for path in out.rglob("*") if path.is_file() and ".tmp" in {path.suffix, *path.parts}]
        assert_private(caplog.text)

    run()
