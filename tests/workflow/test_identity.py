"""No name, number or date of a patient leaves a DICOM file: outputs, log lines and pictures of the CT stages."""

import logging
import subprocess
import sys
from pathlib import Path

from preprocessing.qc.__main__ import main as qc_main
from tests.helpers.cohorts import Cohort, write_scan
from tests.preprocessing.qc.test_status import extract, tiny_encoder  # noqa: F401

MARKS = {
    "PatientName": "Zzmarker^Xyname",
    "PatientID": "QQIDENT4711",
    "PatientBirthDate": "19170203",
    "OtherPatientIDs": "QQOTHER0815",
    "AccessionNumber": "QQACC99",
    "InstitutionName": "Qqclinic",
    "ReferringPhysicianName": "Qqdoctor^Who",
    "StudyInstanceUID": "1.2.777.31415",
    "SeriesInstanceUID": "1.2.777.27182",
    "StudyDate": "20180704",
}
PLAIN = {**dict.fromkeys(MARKS, ""), "StudyInstanceUID": "1.2.5", "SeriesInstanceUID": "1.2.6"}


def chain(folder: Path, marks: dict[str, str]) -> Cohort:
    """List, cut, extract, draw and count a cohort of scans, three of which are damaged."""
    cohort = Cohort(folder)
    for k in range(2):
        write_scan(cohort.raw / f"scan_{k}", **marks, KVP=100 + k)
        cohort.add(f"scan_{k}", f"scan_{k}", split=("train", "test")[k])
    write_scan(cohort.raw / "mr", **marks, Modality="MR")
    cut = write_scan(cohort.raw / "cut", **marks) / "2.dcm"
    cut.write_bytes(cut.read_bytes()[:-200])
    odd = write_scan(cohort.raw / "odd", **marks) / "1.dcm"
    odd.write_bytes(odd.read_bytes().replace(b"0.5\\0.5 ", MARKS["PatientID"].encode()[:8]))
    for name in ("mr", "cut", "odd"):
        cohort.add(name, name)
    assert cohort.list_bags() == 0 and cohort.cut(allowed=3) == 0 and extract(cohort) == 0
    results = cohort.results
    argv = ["--dataset", "mine", "--bags", str(results / "bags.csv"), "--report", str(results / "bags.report.json")]
    argv += ["--instances", str(results / "instances"), "--manifests", str(cohort.manifest())]
    assert qc_main([*argv, "--out", str(results / "qc")]) == 0
    cohort.status()
    return cohort


def written(text: str) -> list[bytes]:
    """How a mark could stand in a file: as text, in two byte orders, its parts."""
    parts = {text, text.lower(), *(part for part in text.split("^") if len(part) > 4)}
    return [part.encode(code) for part in parts for code in ("utf-8", "utf-16-le", "utf-16-be")]


def test_no_mark_of_a_patient_is_in_any_output_log_or_picture(tmp_path, encoder, caplog, capfd) -> None:
    """A picture shows no identity if a scan without one gives the same bytes."""
    caplog.set_level(logging.DEBUG)
    marked = chain(tmp_path / "marked", MARKS)
    assert {e.state for e in marked.entries().values()} == {"ok", "failed"}
    files = [path for path in marked.results.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".csv", ".json", ".jsonl", ".jpg", ".html", ".md"} <= kinds and len(files) > 40
    texts = {str(path): path.read_bytes() for path in files}
    captured = capfd.readouterr()
    texts |= {"log": caplog.text.encode(), "stdout": captured.out.encode(), "stderr": captured.err.encode()}
    texts["names"] = "\n".join(texts).encode()
    assert b"Modality" in texts["log"], "the log mentions the damaged scans"
    for mark in MARKS.values():
        for form in written(mark):
            assert not [name for name, content in texts.items() if form in content], mark
    plain = chain(tmp_path / "plain", PLAIN)
    pictures = [path.relative_to(marked.results) for path in files if path.suffix == ".jpg"]
    assert len(pictures) == 3
    for name in (*pictures, "qc/index.html", "bags.csv"):
        assert (marked.results / name).read_bytes() == (plain.results / name).read_bytes(), name


def test_the_marks_are_in_the_files(tmp_path) -> None:
    """The search above finds the marks in the DICOM files themselves."""
    content = (write_scan(tmp_path / "scan", **MARKS) / "1.dcm").read_bytes()
    assert all(any(form in content for form in written(mark)) for mark in MARKS.values())


def test_a_traceback_of_the_header_reader_quotes_no_value(tmp_path, repository) -> None:
    """The same for an uncaught error in the log of a job."""
    folder = write_scan(tmp_path / "scan", **MARKS)
    path = folder / "1.dcm"
    path.write_bytes(path.read_bytes().replace(b"QQIDENT4711", b"\xff\xfe\x00\x01QQIDENT"))
    program = (
        "import sys; from preprocessing.scans.dicom import read_slice; read_slice(sys.argv[1]); raise KeyError('end')"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=repository, capture_output=True, text=True)
    assert run.returncode == 1 and "QQIDENT" not in run.stderr and "Zzmarker" not in run.stderr
