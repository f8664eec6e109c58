"""The viewer without a browser: what it sends equals what is stored, and nothing else can be had from it."""

import base64
import http.client
import io
import json
import shutil
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from preprocessing.scans.dicom import read_slice
from preprocessing.scans.windows import to_hu
from preprocessing.slides.slide import open_slide
from preprocessing.store.bags import read_arrays, read_instance_attrs
from smmil.artifacts.results import load_predictions
from smmil.view.__main__ import main
from smmil.view.catalogue import find_cohorts
from smmil.view.images import OVERLAP_PX, TILE_PX
from smmil.view.layers import scores
from smmil.view.site import Site
from tests.helpers import cohorts
from tests.helpers.cohorts import write_slide
from tests.view.conftest import LESION, LOGITS


def unpack(packed: dict) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), f"<{packed['kind']}")


def data(site: Site, address: str) -> dict:
    return json.loads(site.get(f"data/{address}").body)


def picture(site: Site, address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(site.get(f"images/{address}").body)))


@pytest.fixture
def copy(results, tmp_path) -> Path:
    """A copy of the results, to alter."""
    return Path(shutil.copytree(results.folder, tmp_path / "copy"))


def test_the_list_has_every_bag_and_every_run(site):
    assert [c["key"] for c in data(site, "catalogue")["cohorts"]] == ["scans", "slides"]
    listing = data(site, "slides/bags")
    states = {bag["id"]: (bag["state"], bag["thumbnail"]) for bag in listing["bags"]}
    assert states.pop("broken") == ("failed", False) and set(states.values()) == {("ok", True)}
    # in the order of the tables, which have SmAP first
    assert [(run["method"], run["seed"]) for run in listing["runs"]] == [
        *[("smap_early", 1), ("smap_early", 2), ("abmil", 1), ("abmil", 2)]
    ]
    for run in listing["runs"]:
        places, logits = unpack(run["bags"]), unpack(run["logits"])
        named = {listing["bags"][i]["id"]: logit for i, logit in zip(places, logits, strict=True)}
        assert named == {bag: v + run["seed"] / 10 for bag, v in LOGITS[run["method"]].items()}
        assert run["parts"] == "tt"
        assert run["thresholds"] == {"score": 0.5} or run["seed"] > 2


def test_scores_are_the_stored_ones(site, results):
    for key, bag in (("slides", "tumour"), ("scans", "bleed")):
        for run in data(site, f"{key}/bags")["runs"]:
            sent = data(site, f"{key}/{bag}/scores-{run['id']}")["scores"]["score"]
            path = results.folder / key / "predictions/resnet18" / run["method"] / f"split{run['seed']}_lr0.0001.npz"
            stored = load_predictions(path)
            np.testing.assert_array_equal(unpack(sent["values"]), stored.bag(bag)["instance_score"])
            np.testing.assert_array_equal(unpack(sent["values"]), results.scores[run["method"], run["seed"]][bag])
            everything = stored.arrays["instance_score"]
            assert (sent["low"], sent["high"]) == (everything.min(), everything.max())


def test_tiles_and_outlines_are_where_they_were_cut(site, results):
    view = data(site, "slides/tumour/bag")
    slide, arrays = view["slide"], read_arrays(results.store("slides"), "tumour")
    np.testing.assert_array_equal(unpack(slide["coords"]).reshape(-1, 2), arrays["coords"])
    np.testing.assert_array_equal(unpack(slide["grid"]).reshape(-1, 2), arrays["grid"])
    np.testing.assert_array_equal(unpack(view["coverage"]), arrays["coverage"])
    assert slide["lesion"]["lengths"] == [5]
    assert {*map(tuple, unpack(slide["lesion"]["points"]).reshape(-1, 2).tolist())} == {*map(tuple, LESION)}
    assert (slide["mpp"], slide["footprint"], view["n"]) == (0.5, 64, len(arrays["coords"]))


def test_deep_zoom_shows_the_pixels_of_the_slide(site, results):
    zoom = data(site, "slides/tumour/bag")["slide"]["zoom"]
    assert (zoom["width"], zoom["height"], zoom["levels"]) == (640, 512, 11)
    with open_slide(results.raw / "tumour.tif") as slide:
        expected = slide.read(TILE_PX - OVERLAP_PX, 0, 0, (640 - TILE_PX + OVERLAP_PX, TILE_PX + OVERLAP_PX))
        index = 3
        x, y = read_arrays(results.store("slides"), "tumour")["coords"][index].tolist()
        tile = slide.read(x, y, 0, (64, 64))
    shown = picture(site, "slides/tumour/10/1_0.jpg")
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 5
    assert np.abs(picture(site, f"slides/tumour/instance-{index}.jpg").astype(int) - tile).mean() < 5


def test_a_dicom_slide_zooms(site):
    zoom = data(site, "slides/normal/bag")["slide"]["zoom"]
    assert (zoom["width"], zoom["height"], zoom["levels"]) == (640, 448, 11)
    expected = cohorts.picture()[:448, : TILE_PX + OVERLAP_PX].astype(int)
    assert np.abs(picture(site, "slides/normal/10/0_0.jpg") - expected).mean() < 6
    # the level of downsample 2 is a file of its own
    assert np.abs(picture(site, "slides/normal/9/0_0.jpg") - cohorts.picture()[:448:2, ::2].astype(int)).mean() < 12


def test_slices_are_hounsfield_units_in_anatomical_order(site, results):
    view = data(site, "scans/bleed/bag")["scan"]
    assert (view["rows"], view["columns"], view["aspect"], view["readable"]) == (16, 16, 2.0, True)
    attrs = read_instance_attrs(results.store("scans"), "bleed")
    for index, name in enumerate(attrs.files):
        sent = data(site, f"scans/bleed/slice-{index}")
        raw, header = read_slice(results.raw.parents[1] / "scans/raw" / name)
        np.testing.assert_array_equal(unpack(sent["hu"]).reshape(16, 16), to_hu(raw, header))
        # the first row points to the patient's left, the first column to the back
        assert sent["sides"] == ["R", "L", "A", "P"]
    assert view["files"] == ["5.dcm", "4.dcm", "3.dcm", "2.dcm", "1.dcm"]


def test_a_failed_bag_and_missing_raw_files_are_explained(results, copy):
    for dataset in ("slides", "scans"):
        path = copy / dataset / "bags.report.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "root": "moved/away"}))
    site = Site("copy", find_cohorts(copy))
    assert "not a slide" in data(site, "slides/broken/bag")["reason"]
    slide, scan = data(site, "slides/tumour/bag"), data(site, "scans/bleed/bag")
    assert slide["slide"]["zoom"] is None and slide["slide"]["lesion"]["lengths"] and not scan["scan"]["readable"]
    assert all(any("--raw" in line for line in view["warnings"]) for view in (slide, scan))
    assert data(Site("copy", find_cohorts(copy, [f"slides={results.raw}"])), "slides/tumour/bag")["slide"]["zoom"]


def test_a_relative_root_counts_from_the_folders_above_the_results(results, copy, tmp_path, monkeypatch):
    (tmp_path / "raw").symlink_to(results.raw)
    report = copy / "slides/bags.report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), "root": "raw"}))
    monkeypatch.chdir("/")
    assert data(Site("copy", find_cohorts(copy)), "slides/tumour/bag")["slide"]["zoom"]


def test_artefacts_are_outlined(copy):
    path = copy / "slides/instances/thumbnails/tumour.json"
    ring, hole = [[0, 0], [90, 0], [90, 90]], [[20, 10], [40, 10], [40, 20]]
    found = {"pen": {"share": 0.25, "areas": [[ring, hole]]}, "blur": {"share": 0.0, "areas": []}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "artefacts": found}))
    artefacts = data(Site("copy", find_cohorts(copy)), "slides/tumour/bag")["slide"]["artefacts"]
    assert [*artefacts] == ["pen"] and artefacts["pen"]["share"] == 0.25
    assert artefacts["pen"]["rings"]["lengths"] == [3, 3]
    assert unpack(artefacts["pen"]["rings"]["points"]).reshape(-1, 2).tolist() == [*ring, *hole]


def test_openseadragon_is_pinned_by_its_hash(repository):
    (wanted,) = json.loads((repository / "package.json").read_text())["dependencies"].items()
    packages = json.loads((repository / "package-lock.json").read_text())["packages"]
    locked = {path.removeprefix("node_modules/"): entry for path, entry in packages.items() if path}
    assert {name: entry["version"] for name, entry in locked.items()} == dict([wanted])
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in locked.values())


def test_another_slide_in_the_place_of_the_first_is_not_shown(results, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(results.raw, raw)
    write_slide(raw / "tumour.tif", cohorts.picture()[:480, :600])
    site = Site("results", find_cohorts(results.folder, [f"slides={raw}"]))
    view = data(site, "slides/tumour/bag")
    assert view["slide"]["zoom"] is None and any("was replaced" in line for line in view["warnings"])


def test_predictions_beside_one_another_are_one_list(results, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(results.folder / "slides", tmp_path / "new" / name / "bag")
        (tmp_path / "new" / name / "bag/predictions").rename(tmp_path / "new" / name / "bag/scores")
    site = Site("new", find_cohorts(tmp_path / "new"))
    assert [*site.cohorts] == ["new"]
    listing = data(site, "new/bags")
    names = [bag["id"] for bag in listing["bags"]]
    assert len(names) == 8 and {"tumour", "tumour-2"} < {*names}
    run = listing["runs"][0]
    assert {names[i] for i in unpack(run["bags"])} == {"tumour", "normal", "tumour-2", "normal-2"}
    first, second = (data(site, f"new/{bag}/scores-{run['id']}") for bag in ("tumour", "tumour-2"))
    assert first == second and data(site, "new/tumour-2/bag")["slide"]["zoom"]


def test_a_damaged_run_does_not_stop_the_others(copy):
    folder = copy / "slides/predictions/resnet18"
    (folder / "abmil/split1_lr0.0001.npz").write_bytes(b"no archive")
    (folder / "smap_early/split2_lr0.0001.npz").unlink()
    site = Site("copy", find_cohorts(copy))
    listing = data(site, "slides/bags")
    assert [(run["method"], run["seed"]) for run in listing["runs"]] == [("smap_early", 1), ("abmil", 2)]
    assert len(listing["notes"]) == 2 and all("split" in note for note in listing["notes"])
    assert data(site, f"slides/tumour/scores-{listing['runs'][0]['id']}")["scores"]["score"]
    (folder / "abmil/index.json").write_text("{}")
    assert any("index.json" in note for note in data(site, "slides/bags")["notes"])


def test_predictions_of_an_earlier_cut_are_refused(copy):
    store = copy / "slides/instances/store"
    shutil.rmtree(store / "tumour")
    shutil.copytree(copy / "scans/instances/store/bleed", store / "tumour")
    shutil.rmtree(copy / "slides/instances/shards")
    cohort = find_cohorts(copy)["slides"]
    with pytest.raises(ValueError, match="tumour was predicted with .* run the workflow again"):
        scores(cohort.bags["tumour"], cohort.runs()[0])


def get(server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    result = reply.status, reply.read(), reply.headers
    connection.close()
    return result


def test_only_the_token_opens_the_server(server):
    path = urlsplit(server.url).path
    status, body, headers = get(server, path)
    assert status == 200 and b"viewer.js" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Referrer-Policy"] == "no-referrer"
    wrong = "/" + "x" * 32 + "/"
    for other in ("/", path[:-1], wrong, f"{wrong}data/catalogue", "/data/catalogue", f"{path[:-2]}/data/catalogue"):
        status, body, _ = get(server, other)
        assert status == 403 and b"token" in body, other


def test_other_host_names_and_methods_are_refused(server):
    path = urlsplit(server.url).path
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert get(server, path, Host=host)[0] == 403
    for host in ("localhost:9000", "127.0.0.1", "LOCALHOST"):
        assert get(server, path, Host=host)[0] == 200
    assert get(server, path, "HEAD")[:2] == (200, b"")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, path, method)[0] == 501


@pytest.mark.parametrize(
    "address",
    [
        *("../bags.csv", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "vendor/../records.py", "records.py"),
        *("data/slides/../bags", "data/slides/tumour", "data/none/bags", "data/slides/none/bag", "data//bags"),
        *("data/slides/tumour/x", "data/slides/tumour/scores-000000000000", "images/slides/tumour/../../x.jpg"),
        *("images/slides/tumour/thumbnail.json", "images/slides/none/thumbnail.jpg", "images//etc/passwd"),
        "viewer.js/",
    ],
)
def test_addresses_outside_the_site_lead_nowhere(server, address):
    status, body, _ = get(server, f"{urlsplit(server.url).path}{address}")
    assert status == 404 and b"no such page" in body


def test_what_cannot_be_read_is_one_line(server):
    path = urlsplit(server.url).path
    for address, text in (
        *(("images/slides/tumour/10/9_9.jpg", "Invalid address"), ("images/slides/tumour/99/0_0.jpg", "Invalid level")),
        *(("images/slides/tumour/instance-99999.jpg", "no instance"), ("data/scans/bleed/slice-5", "no slice 5")),
        *(("data/slides/tumour/slice-0", "no slice 0"), ("images/slides/broken/thumbnail.jpg", "no thumbnail")),
    ):
        status, body, _ = get(server, path + address)
        assert status == 422 and text in json.loads(body)["error"], address


def test_links_that_lead_out_are_refused(results, copy):
    thumbnail = copy / "slides/instances/thumbnails/tumour.jpg"
    thumbnail.unlink()
    thumbnail.symlink_to(results.folder / "slides/instances/thumbnails/normal.jpg")
    with pytest.raises(ValueError, match="leads out"):
        Site("copy", find_cohorts(copy)).get("images/slides/tumour/thumbnail.jpg")
    shutil.rmtree(copy / "slides")
    (copy / "slides").symlink_to(results.folder / "slides")
    with pytest.raises(ValueError, match="leads out"):
        find_cohorts(copy)


def exported(folder: Path, address: str) -> dict:
    text = (folder / f"{address}.js").read_text()
    assert text.startswith(f'smmilData("{address}",') and text.endswith(");\n")
    return json.loads(text.removeprefix(f'smmilData("{address}",')[:-3])


@pytest.fixture
def openseadragon(site):
    if not site.has_openseadragon:
        pytest.skip("OpenSeadragon is not installed: run `make viewer`")


@pytest.mark.usefixtures("openseadragon")
def test_an_export_holds_what_the_server_sends(site, results, tmp_path, capsys):
    out = tmp_path / "page"
    assert main([str(results.folder), "--export", str(out), "--bags", "tumour", "scans/bleed"]) == 0
    assert "2 bags" in capsys.readouterr().out
    assert {path.name for path in (out / "data").iterdir()} == {"catalogue.js", "slides", "scans"}
    assert [bag["id"] for bag in exported(out, "data/slides/bags")["bags"]] == ["tumour"]
    for address in ("data/slides/tumour/bag", "data/scans/bleed/slice-2"):
        assert exported(out, address) == json.loads(site.get(address).body)
    runs = exported(out, "data/slides/bags")["runs"]
    assert [unpack(run["bags"]).tolist() for run in runs] == [[0]] * 4
    for run in runs:
        address = f"data/slides/tumour/scores-{run['id']}"
        assert exported(out, address) == json.loads(site.get(address).body)
    assert len(list((out / "images/slides/tumour/10").iterdir())) == 4
    assert 'data-mode="static"' in (out / "index.html").read_text()
    # a second export replaces the first; other folders are left alone
    assert main([str(results.folder), "--export", str(out), "--bags", "scans/bleed"]) == 0
    assert not (out / "images/slides").exists() and not (out / "data/slides").exists()
    assert main([str(results.folder), "--export", str(results.folder)]) == 2
    assert "holds other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such folder"),
        (["EMPTY"], "no bags.csv"),
        (["PREDICTION"], "predictions without their tiles"),
        (["RESULTS", "--bag", "tumor"], "no bag 'tumor' (did you mean 'tumour'?)"),
        (["RESULTS", "--raw", "other=."], "--raw other=...: no such dataset"),
        (["RESULTS", "--raw", "nowhere"], "--raw nowhere: no such folder"),
        (["RESULTS", "--port", "70000"], "--port 70000"),
    ],
)
def test_expected_refusals_are_one_line(results, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "PREDICTION/slide").mkdir(parents=True)
    (tmp_path / "PREDICTION/slide/prediction.json").touch()
    argv = [argument.replace("RESULTS", str(results.folder)) for argument in arguments]
    assert main([*argv, "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
