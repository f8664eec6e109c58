"""What a slide's header claims: the main picture, samples that would be read wrong, files that are no slides.

A file is either read right, which the pixels that were written decide, or refused by name.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from PIL import Image as Pillow

from preprocessing.slides.slide import open_slide
from tests.helpers.pyramids import shrunk, texture, tissue, write_tiff

Array = npt.NDArray[Any]
MAIN = tissue()
HALF, QUARTER = shrunk(MAIN, 2), shrunk(MAIN, 4)
OTHER = tissue(9)
HEIGHT, WIDTH = MAIN.shape[:2]


def write_pages(path: Path, pages: list[tuple[Array, dict[str, Any]]], **shared: Any) -> Path:
    """Write a TIFF page by page; tiled RGB of 0.5 um/px in the first page unless said otherwise."""
    usual = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "maxworkers": 1, "compression": "zlib"}
    usual |= {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for pixels, options in pages:
            writer.write(pixels, **{**usual, **shared, **options})
    return path


# --- which picture is the slide ---------------------------------------------------------------------------------

THUMB = texture(64, 64)
REDUCED: dict[str, Any] = {"subfiletype": 1}
COARSE = {"resolution": (1_000, 1_000)}


def test_the_resolution_is_that_of_level_0(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", [(THUMB, COARSE), (MAIN, REDUCED), (HALF, {**REDUCED, **COARSE})])
    with openslide.OpenSlide(path) as plain:
        assert float(plain.properties["openslide.mpp-x"]) == 10
    with open_slide(path) as slide:
        assert slide.dimensions == (WIDTH, HEIGHT) and slide.mpp == 0.5 and len(slide.level_dimensions) == 2


PICTURES: dict[str, tuple[list[Any], str]] = {
    "thumbnail before the slide": (
        [(THUMB, {}), (MAIN, {}), (HALF, REDUCED)],
        r"directory 1 \(896 x 704 px\) is larger.*a\.tif\[page=1\]",
    ),
    "thumbnail marked as reduced before the slide": (
        [(THUMB, REDUCED), (MAIN, {})],
        r"opens directory 0 \(64 x 64 px\) as level 0, but directory 1",
    ),
    "thumbnail in strips before the slide": (
        [(THUMB, {"tile": None}), (MAIN, {})],
        r"largest picture is directory 1 .*first picture is in strips.*a\.tif\[page=1\]",
    ),
    "slide in strips after a thumbnail": ([(THUMB, {}), (MAIN, {"tile": None})], r"directory 1 .*is larger"),
    "slide in strips": (
        [(MAIN, {"tile": None})],
        r"directory 0 .*it is in strips instead of tiles; convert it with `vips tiffsave a\.tif",
    ),
    "macro image marked as a level, so that OpenSlide does not open the file": (
        [(MAIN, {}), (QUARTER, REDUCED), (texture(400, 200), REDUCED)],
        r"directory 2 \(200 x 400 px\) .*no level of directory 0 .*vips tiffsave",
    ),
    "colour channels in separate grey pictures": (
        [(MAIN[..., channel], {"photometric": "minisblack"}) for channel in range(3)],
        r"directory 0 .* is grey, and there is directory 1 .*channels",
    ),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_main_picture_that_would_be_left_out_is_named(tmp_path: Path, case: str) -> None:
    pages, message = PICTURES[case]
    with pytest.raises(ValueError, match=rf"a\.tif: .*{message}"):
        open_slide(write_pages(tmp_path / "a.tif", pages))


def test_a_second_pyramid_is_named_and_not_read(tmp_path: Path) -> None:
    pages = [(MAIN, {}), (HALF, REDUCED), (OTHER, {}), (shrunk(OTHER, 2), REDUCED)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert "directory 2 (896 x 704 px) of the same size is not" in slide.warnings[0]
        np.testing.assert_array_equal(slide.read(0, 0, 1, (448, 352)), HALF)
        assert len(slide.level_dimensions) == 2


def test_ome_tiff_with_sub_directories_and_physical_size(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "maxworkers": 1}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        size = {"axes": "YXS", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
        writer.write(MAIN, subifds=1, metadata=size, **options)
        writer.write(HALF, subfiletype=1, **options)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.mpp, slide.mpp_source, slide.warnings) == (0.25, "ome.physical_size", ())
        np.testing.assert_array_equal(slide.read(0, 0, 0, (WIDTH, HEIGHT)), MAIN)


# --- samples ----------------------------------------------------------------------------------------------------

RGB = texture(200, 300, 5)
GREY = RGB[..., 1]
WIDE = RGB.astype(np.uint16)
PALETTE = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 90)]).astype(np.uint16)


class Samples(NamedTuple):
    """Pixels and options of a file; what is read, or the start of the refusal."""

    pixels: Array
    options: dict[str, Any]
    result: Array | str


def with_alpha(value: int, kind: str) -> tuple[Array, dict[str, Any]]:
    return np.dstack([RGB, np.full_like(GREY, value)]), {"extrasamples": [kind]}


def tag(code: int, value: int) -> dict[str, Any]:
    return {"extratags": [(code, 3, 1, value, True)]}


def on_white(alpha: int) -> Array:
    return np.asarray((RGB * (alpha / 255) + 255 - alpha).round(), np.uint8)


GREY_RGB = np.dstack([GREY] * 3)
SAMPLES = {
    "RGB": Samples(RGB, {}, RGB),
    "planes of colour one after the other": Samples(np.moveaxis(RGB, 2, 0), {"planarconfig": "separate"}, RGB),
    "horizontal predictor": Samples(RGB, {"predictor": True}, RGB),
    "16 bit": Samples(WIDE * 257, {}, RGB),
    "grey": Samples(GREY, {"photometric": "minisblack"}, GREY_RGB),
    "white is zero": Samples(255 - GREY, {"photometric": "miniswhite"}, GREY_RGB),
    "palette": Samples(GREY, {"photometric": "palette", "colormap": PALETTE * 257}, PALETTE.T[GREY].astype(np.uint8)),
    "opaque alpha": Samples(*with_alpha(255, "unassalpha"), RGB),
    "half transparent (becomes lighter)": Samples(*with_alpha(128, "unassalpha"), on_white(128)),
    "transparent (becomes white)": Samples(*with_alpha(0, "unassalpha"), on_white(0)),
    "orientation 1": Samples(RGB, tag(274, 1), RGB),
    "12 bits in 16": Samples(WIDE * 16, {}, "16-bit samples reach about 4111 of 65535"),
    "15 bits in 16": Samples(WIDE * 128, {}, "16-bit samples reach about 3.* of 65535"),
    "fourth sample, 0, not declared as alpha": Samples(
        *with_alpha(0, "unspecified"), "has a fourth sample that is not declared as alpha"
    ),
    "fourth sample, 255, not declared as alpha": Samples(
        *with_alpha(255, "unspecified"), "has a fourth sample that is not declared as alpha"
    ),
    "five samples": Samples(
        np.dstack([RGB, GREY, GREY]), {"extrasamples": [0, 0]}, "has 5 samples per pixel, expected 3"
    ),
    "grey and alpha": Samples(
        np.dstack([GREY, GREY]),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        "has 2 samples per pixel, expected 1",
    ),
    "three grey samples": Samples(
        RGB, {"photometric": "minisblack", "planarconfig": "contig"}, "has 3 samples per pixel, expected 1"
    ),
    "16 bits, 0 is white": Samples(
        WIDE[..., 0] * 16, {"photometric": "miniswhite"}, "has 16-bit samples in which 0 is white"
    ),
    "floating-point samples": Samples(RGB.astype(np.float32) / 255, {}, "has floating-point samples of 32 bits"),
    "half-precision samples": Samples((RGB / 255).astype(np.float16), {}, "has floating-point samples of 16 bits"),
    "signed samples": Samples(RGB.astype(np.int16), {}, "has signed samples of 16 bits"),
    "32 bit": Samples(RGB.astype(np.uint32), {}, "has samples of 32 bits"),
    "1 bit": Samples(GREY > 128, {"photometric": "minisblack"}, "has samples of 1 bits"),
    "CMYK": Samples(
        np.dstack([255 - RGB, GREY * 0]), {"photometric": "separated"}, r"has colour space 5 \(SEPARATED\)"
    ),
    "CIELAB": Samples(RGB, {"photometric": "cielab"}, r"has colour space 8 \(CIELAB\)"),
    **{f"orientation {n}": Samples(RGB, tag(274, n), "has orientation [2-8], expected 1") for n in range(2, 9)},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read_right_or_refused(tmp_path: Path, name: str) -> None:
    case = SAMPLES[name]
    path = write_pages(tmp_path / "a.tif", [(case.pixels, case.options)])
    if isinstance(case.result, str):
        with pytest.raises(ValueError, match=rf"a\.tif: .*{case.result}.*docs/reference/input\.md"):
            open_slide(path)
        return
    with open_slide(path) as slide:
        region = slide.read(0, 0, 0, slide.dimensions)
        assert np.abs(region.astype(int) - case.result).max() <= 1
        assert not slide.warnings


def test_uncompressed_ycbcr(tmp_path: Path) -> None:
    coded = np.asarray(Pillow.fromarray(RGB).convert("YCbCr"))
    with open_slide(write_pages(tmp_path / "a.tif", [(coded, {"photometric": "ycbcr"})])) as slide:
        assert np.abs(slide.read(0, 0, 0, (300, 200)).astype(int) - RGB).max() <= 3


# --- compressions and files that are no slides ------------------------------------------------------------------


LOSSLESS = {"none": None, "LZW": "lzw", "Deflate": "zlib", "PackBits": "packbits", "Zstandard": "zstd"}
UNREADABLE = {
    "WebP": ("webp", "compression 50001 (WEBP) cannot be read by OpenSlide"),
    "JPEG XL": ("jpegxl", "compression 50002 (JPEGXL) cannot be read by OpenSlide"),
    "JPEG 2000 (except in SVS)": ("jpeg2000", "compression 34712 (JPEG2000) cannot be read by OpenSlide"),
    "JPEG XR": ("jpegxr", "compression 34934 (JPEGXR) cannot be read by OpenSlide"),
    "LERC": ("lerc", "compression 34887 (LERC) cannot be read by OpenSlide"),
    "LZMA": ("lzma", "compression 34925 (LZMA) cannot be read by OpenSlide"),
    "PNG": ("png", "compression 34933 (PNG) cannot be read by OpenSlide"),
}


@pytest.mark.parametrize("compression", LOSSLESS.values())
def test_lossless_compressions_that_are_read(tmp_path: Path, compression: str | None) -> None:
    with open_slide(write_pages(tmp_path / "a.tif", [(RGB, {"compression": compression})])) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, (300, 200)), RGB)


@pytest.mark.parametrize(("compression", "name"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_compression_that_cannot_be_read_is_named(tmp_path: Path, compression: str, name: str) -> None:
    path = write_pages(tmp_path / "my slide.tif", [(RGB, {"compression": compression})])
    with pytest.raises(ValueError, match=r"my slide\.tif: compression") as caught:
        open_slide(path)
    text = str(caught.value)
    assert name in text and "`vips tiffsave 'my slide.tif' NEW.tif --tile --pyramid --compression jpeg" in text
    assert "docs/reference/input.md" in text and "damaged" not in text and "copy" not in text


def encoded(extension: str) -> bytes:
    return bytes(cv2.imencode(extension, RGB)[1])


NO_SLIDES = {
    "empty file": ("a.svs", b"", r"empty file \(0 bytes\)"),
    "Git LFS pointer": (
        "a.tif",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer instead of the slide; fetch the file with `git lfs pull`",
    ),
    "zip archive": ("a.tif", b"PK\x03\x04" + bytes(99), "a zip archive; unpack it"),
    "gzip archive": ("a.svs", b"\x1f\x8b" + bytes(99), "a gzip archive; unpack it"),
    "web page that was downloaded instead": (
        "a.svs",
        b"<!DOCTYPE html><title>404</title>",
        "a web page or XML text instead of the slide; download it again",
    ),
    "JPEG": ("a.tif", encoded(".jpg"), r"a JPEG picture; convert it with `vips tiffsave a\.tif"),
    "PNG": ("a.tif", encoded(".png"), "a PNG picture; convert"),
    "BMP": ("a.tif", encoded(".bmp"), "a BMP picture; convert"),
    "MIRAX without its folder": ("a.mrxs", encoded(".jpg"), "is its folder a/ beside it, whole"),
    "TIFF header and nothing else": ("a.tif", b"II*\0" + bytes(99), "damaged slide .*copy the file again"),
    "text": ("a.txt", b"some text", "not a slide that OpenSlide can read"),
}
CUT_OFF = "damaged slide .*; copy the file again or exclude it"


@pytest.mark.parametrize("case", NO_SLIDES)
def test_files_that_are_no_slides_are_named(tmp_path: Path, case: str) -> None:
    name, content, message = NO_SLIDES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        open_slide(tmp_path / name)


def test_a_whole_file_in_a_form_that_openslide_does_not_know_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, MAIN, byteorder=">", tile=(128, 128), photometric="rgb", metadata=None)
    with pytest.raises(
        ValueError, match=r"a\.tif: .*\(big-endian\).*may be whole; convert it with `vips tiffsave a\.tif"
    ):
        open_slide(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.tif: damaged slide .*cut off"):
        open_slide(path)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.6, 0.9, 0.999])
def test_a_slide_that_is_cut_off_is_damaged(tmp_path: Path, share: float) -> None:
    path = write_tiff(tmp_path / "a.tif", [MAIN, HALF, shrunk(MAIN, 4)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=rf"a\.tif: {CUT_OFF}"):
        open_slide(path)


def test_a_tile_larger_than_the_file_is_damaged(tmp_path: Path) -> None:
    """OpenSlide ends the process where it cannot allocate a tile."""
    path = write_tiff(tmp_path / "a.tif", [MAIN, HALF])
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[1].tags["TileByteCounts"].valueoffset
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 4)
    with pytest.raises(ValueError, match=r"a\.tif: damaged slide \(directory 1 .* a tile of 4294967295 bytes"):
        open_slide(path)


def test_a_slide_with_an_unreadable_second_directory_is_damaged(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [MAIN, HALF])
    with tifffile.TiffFile(path) as tiff:
        second = tiff.pages[1].offset
    content = bytearray(path.read_bytes())
    content[second : second + 2] = b"\0\xfe"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: damaged slide"):
        open_slide(path)


def test_a_replaced_file_is_checked_again(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", [(RGB, {})])
    open_slide(path).close()
    write_pages(path, [(RGB, tag(274, 3))])
    with pytest.raises(ValueError, match="orientation 3"):
        open_slide(path)


# --- the script of the guide ------------------------------------------------------------------------------------


CONVERTED: dict[str, Callable[[Path], object]] = {
    "webp": lambda path: write_pages(path, [(RGB, {"compression": "webp"})]),
    "thumbnail first": lambda path: write_pages(path, [(THUMB, {}), (RGB, {})]),
    "strips": lambda path: write_pages(path, [(RGB, {"tile": None})]),
    "12 bit": lambda path: write_pages(path, [(WIDE * 16, {})]),
    "float": lambda path: write_pages(path, [(RGB.astype(np.float32) / 255, {})]),
    "planar": lambda path: write_pages(path, [(np.moveaxis(WIDE * 16, 2, 0), {"planarconfig": "separate"})]),
    "fourth sample": lambda path: write_pages(path, [with_alpha(0, "unspecified")]),
    "CMYK": lambda path: write_pages(path, [(np.dstack([255 - RGB, GREY * 0]), {"photometric": "separated"})]),
    "orientation 6": lambda path: write_pages(path, [(np.ascontiguousarray(np.rot90(RGB)), tag(274, 6))]),
    "orientation 7": lambda path: write_pages(
        path, [(np.ascontiguousarray(np.rot90(RGB, 2).swapaxes(0, 1)), tag(274, 7))]
    ),
    "channels": lambda path: write_pages(path, [(RGB[..., n], {"photometric": "minisblack"}) for n in range(3)]),
    "png": lambda path: Pillow.fromarray(RGB).save(path, format="png"),
}


def test_the_script_of_the_guide_converts_what_is_refused(tmp_path: Path, repository: Path) -> None:
    text = (repository / "docs/reference/input.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = compile(block, "input.md", "exec")
    for name, make in CONVERTED.items():
        source, target = tmp_path / f"{name}.tif", tmp_path / f"{name}.new.tif"
        make(source)
        with pytest.raises(ValueError, match=r"docs/reference/input\.md"):
            open_slide(source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["convert.py", str(source), str(target)])
            exec(code, {})
        with open_slide(target, mpp_override=0.5 if name == "png" else None) as slide:
            assert slide.mpp == 0.5 and slide.dimensions == (300, 200), name
            assert np.abs(slide.read(0, 0, 0, (300, 200)).astype(int) - RGB).mean() < 5, name
