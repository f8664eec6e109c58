"""Bringing raw data: verified downloads from a folder and from a server on this machine, and advice for Kaggle data."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from preprocessing.common import download as transport
from preprocessing.raw import check_url, fetch_split, main, parse_checksums, registry

CONTENT = {
    "README.md": b"about the data",
    "images/normal_001.tif": b"slide" * 5_000,
    "images/tumor 002.tif": b"other slide",
    "annotations/tumor_002.xml": b"<xml/>",
    "masks/tumor_002_mask.tif": b"mask, not asked for",
}


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    lines = [f"{md5(data)}  {'./' if n.startswith('images') else ''}{n}\n" for n, data in CONTENT.items()]
    (folder / "checksums.md5").write_text("".join(lines))
    return folder


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges, and can break a connection once per path."""

    folder: Path
    broken: set[str]
    requests: list[tuple[str, str]]

    def do_GET(self) -> None:
        name = self.path.lstrip("/").replace("%20", " ")
        wanted = self.headers.get("Range", "")
        self.requests.append((name, wanted))
        path = self.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int(wanted[6:].rstrip("-")) if wanted else 0
        if start >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = name in self.broken
        self.broken.discard(name)
        self.wfile.write(data[start : len(data) // 2] if cut else data[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transport.time, "sleep", lambda seconds: None)
    handler = type("Here", (Handler,), {"folder": source, "broken": set(), "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", handler
        httpd.shutdown()
        thread.join()


def bring(out: Path, url: str, *more: str) -> int:
    return main(["camelyon16", "--out", str(out), "--url", url, *more])


def files(folder: Path) -> dict[str, bytes]:
    contents = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    contents.pop(transport.RECORD, None)
    return contents


WANTED = {n: d for n, d in CONTENT.items() if not n.startswith("masks")}


def test_from_a_folder(tmp_path: Path, source: Path) -> None:
    assert bring(tmp_path / "all", source.as_uri(), "--include", "images/", "masks/", "annotations/") == 0
    assert files(tmp_path / "all") == CONTENT


def test_from_a_server_and_again(tmp_path: Path, server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    assert bring(tmp_path / "out", url) == 0 and files(tmp_path / "out") == WANTED
    handler.requests.clear()
    (tmp_path / "out" / "images" / "normal_001.tif").write_bytes(b"damaged since")
    assert bring(tmp_path / "out", url) == 0
    # what is verified is not fetched again, what changed is
    assert [name for name, _ in handler.requests] == ["checksums.md5", "images/normal_001.tif"]
    assert files(tmp_path / "out") == WANTED


def test_an_interrupted_download_goes_on(tmp_path: Path, server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    name = "images/normal_001.tif"
    handler.broken.add(name)
    assert bring(tmp_path / "out", url) == 0 and files(tmp_path / "out") == WANTED
    assert [r for n, r in handler.requests if n == name] == ["", f"bytes={len(CONTENT[name]) // 2}-"]
    # a part that is already whole, as left by a kill just before the rename
    (tmp_path / "more" / "images").mkdir(parents=True)
    (tmp_path / "more" / f"{name}.part").write_bytes(CONTENT[name])
    assert bring(tmp_path / "more", url) == 0 and files(tmp_path / "more") == WANTED


def test_wrong_sums_never_get_the_name(tmp_path, server, source, caplog):
    (source / "images" / "normal_001.tif").write_bytes(b"tampered")
    (source / "annotations" / "tumor_002.xml").unlink()
    assert bring(tmp_path / "out", server[0]) == 1
    assert set(files(tmp_path / "out")) == {"README.md", "images/tumor 002.tif"}
    assert "images/normal_001.tif: MD5" in caplog.text and "tumor_002.xml" in caplog.text


def test_lists_that_cannot_be_trusted(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{md5(b'').upper()} *CAMELYON16/images/a b.tif\n"
    for path in ("../x.tif", "/etc/x", "a\\..\\x"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            parse_checksums(f"{md5(b'')}  {path}\n", source="list")
    with pytest.raises(ValueError, match="line 2"):
        parse_checksums(f"{line}hello\n", source="list")
    assert parse_checksums(f"{line}\n", source="list") == {"images/a b.tif": md5(b"")}
    assert bring(tmp_path / "out", source.as_uri(), "--include", "nothing/") == 2
    assert "check --include" in capsys.readouterr().err
    (source / "checksums.md5").unlink()
    assert bring(tmp_path / "out", source.as_uri()) == 2
    assert "list of checksums cannot be read" in capsys.readouterr().err


def test_only_safe_urls_are_taken() -> None:
    assert check_url("https://example.org/a") == "https://example.org/a/" and check_url(registry()["camelyon16"].url)
    for bad in ("http://example.org/", "ftp://example.org/", "folder"):
        with pytest.raises(ValueError, match="--url"):
            check_url(bad)


def test_data_to_fetch_by_hand(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transport.time, "sleep", lambda seconds: None)
    nowhere = (tmp_path / "nowhere").as_uri()
    assert main(["panda", "--out", str(tmp_path), "--url", nowhere]) == 1
    text = capsys.readouterr().out
    assert "train_images: 0 files, about 10616" in text and "accept the rules" in text and "no slide" in text
    assert "partition_PANDA.xlsx" in text and f"NOT FETCHED from {nowhere}/partition_PANDA.xlsx" in text
    (tmp_path / "stage_2_train").mkdir()
    (tmp_path / "stage_2_train" / "ID_1.dcm").touch()
    assert main(["rsna", "--out", str(tmp_path), "--url", nowhere]) == 1
    assert "stage_2_train: 1 files" in capsys.readouterr().out


def test_the_published_split_is_fetched_by_checksum_and_no_other_file_is_replaced(
    tmp_path: Path, server: tuple[str, type[Handler]], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = registry()["rsna"]
    content = b"instance_name,bag_name\nID_1.dcm,scan\n"
    published = replace(entry, split_sha256=hashlib.sha256(content).hexdigest())
    (source / "testing_example.csv").write_bytes(content)
    base = server[0] + "/"
    path = tmp_path / "raw" / "testing_example.csv"
    # the registry's checksum refuses another content
    assert not fetch_split(entry, path.parent, base) and not path.exists()
    assert "NOT FETCHED" in capsys.readouterr().out
    assert fetch_split(published, path.parent, base) and path.read_bytes() == content
    server[1].requests.clear()
    assert fetch_split(published, path.parent, base) and not server[1].requests
    assert "verified" in capsys.readouterr().out
    path.write_text("a list of mine")
    assert not fetch_split(published, path.parent, base) and path.read_text() == "a list of mine"
    assert "found another file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "file"), [("rsna", "rsna/test_150_scans.csv"), ("panda", "panda/partition_PANDA.xlsx")]
)
def test_the_registry_knows_the_real_splits(tmp_path: Path, shared_data: Path, dataset: str, file: str) -> None:
    entry = registry()[dataset]
    name = entry.split_url.rpartition("/")[2]
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / name).write_bytes((shared_data / file).read_bytes())
    assert fetch_split(entry, tmp_path / "raw", (tmp_path / "server").as_uri() + "/")
    assert (tmp_path / "raw" / name).is_file()
