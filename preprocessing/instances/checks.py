"""What looks wrong with a bag that was cut, in plain sentences.

A check warns, it never stops a bag. Log, status, contact sheet and `smmil.predict` show what `warnings_of` returns.
Every threshold has its reason beside it: a good bag stays silent, so a warning is worth reading.
"""

from collections.abc import Iterator

from preprocessing.store.attrs import InstanceAttrs, ScanStatistics, SlideStatistics


def warnings_of(attrs: InstanceAttrs) -> tuple[str, ...]:
    """Return what looks wrong with a stored bag, its pixels first; empty for a good one.

    `attrs.warnings`, what was odd about the files, are among them.
    """
    statistics, of_pixels = attrs.statistics, list[str]()
    if isinstance(statistics, SlideStatistics):
        of_pixels += _of_slide(statistics)
    elif isinstance(statistics, ScanStatistics):
        of_pixels += _of_scan(statistics)
    return (*of_pixels, *attrs.warnings, *_of_bag(attrs))


def _of_slide(slide: SlideStatistics) -> Iterator[str]:
    # Tissue is never black; a pen or a fold may blacken single tiles of a large slide.
    if slide.black >= max(1, 0.01 * slide.tiles):
        yield f"{slide.black} of {slide.tiles} tiles are black: are parts of the slide missing?"
    # Tiles at the border of the tissue are pale, but not white.
    if slide.white >= max(1, 0.05 * slide.tiles):
        yield f"{slide.white} of {slide.tiles} tiles are white: has the mask taken glass for tissue?"
    # Tiles of good slides span a third of the grey levels and more; mucus and fat are paler, but rarely a tenth.
    if slide.flat >= max(1, 0.1 * slide.sampled):
        yield f"{slide.flat} of {slide.sampled} tiles looked at have no contrast: is there tissue in them?"
    if slide.unreadable:
        yield f"{slide.unreadable} of {slide.sampled} tiles looked at cannot be decoded: is the file damaged?"
    darkest, brightest = slide.luminance
    # Glass in a bright field has 200 to 255, tissue alone reaches 150.
    dark = brightest < 100
    if dark:
        yield (
            f"nothing on this slide is brighter than {brightest:g} of 255: is it empty, a fluorescence picture, or are "
            "values of 12 bits stored in 16?"
        )
    # The border of the glass or a pen blackens a few percent.
    elif slide.black_area > 0.1:
        yield (
            f"{slide.black_area:.0%} of this slide is black: is it inverted, a fluorescence picture, or are parts "
            "missing?"
        )
    # Glass alone spans 5 to 15 grey levels, with tissue it is 100 and more.
    blank = brightest - darkest < 20 and not dark
    if blank:
        yield f"this slide has a single shade ({darkest:g} to {brightest:g} of 255): is it empty?"
    if not dark and not blank:
        # Channels of stained tissue differ by 40 and more, those of a grey picture by 0 to 5 after compression.
        if slide.colour < 12:
            # Tiles of a slide without colour come from a mask, or from a recipe that looks at grey levels.
            yield "this slide has no colour: " + (
                "encoders expect stained tissue"
                if slide.tiles
                else "no threshold can find tissue, give a mask (column mask of the manifest)"
            )
        # The weakest channel spans 0.6 of what the strongest does, with brown stains 0.4.
        least = 0.25 * max(slide.channel_ranges)
        ranges = zip(("red", "green", "blue"), slide.channel_ranges, strict=True)
        if weak := [name for name, spread in ranges if spread < least]:
            yield f"{' and '.join(weak)} hardly varies over this slide: is the channel missing?"
    # Glass is white within 10; eosin, the palest stain, within 70; white YCbCr shown as RGB differs by 127, RGB shown
    # as YCbCr by 82.
    if max(slide.background) - min(slide.background) > 78:
        yield (
            f"the brightest parts have red, green, blue of {', '.join(f'{v:g}' for v in slide.background)}, not white: "
            "is this another colour space?"
        )


def _of_scan(scan: ScanStatistics) -> Iterator[str]:
    # Half of a head scan is air; a small field of view has some in the nose, lungs or bowels.
    if scan.air < 0.001:
        yield f"no air in this scan (least value {scan.least:g} HU): are these Hounsfield units?"
    # Every part of the body has bone, of 300 to 2000 HU.
    if scan.largest < 300:
        yield f"largest value {scan.largest:g} HU: no bone; are these Hounsfield units?"
    # It is 5 to 10 % of a head scan and less elsewhere.
    if scan.bone > 0.25:
        yield f"{scan.bone:.0%} of this scan is as dense as bone: are these Hounsfield units?"
    # It is a third of a head scan.
    if scan.soft < 0.05:
        yield f"{scan.soft:.1%} of this scan is as dense as soft tissue (-200 to 200 HU): are these Hounsfield units?"
    # A handful of pixels has the largest value, except metal at the end of 12 bits (3071 HU).
    if scan.clipped >= max(1, 0.1 * scan.sampled) and scan.largest < 3000:
        yield (
            f"values end at {scan.largest:g} HU in {scan.clipped} of {scan.sampled} slices: were they clipped to a "
            "window?"
        )
    # Even air is noisy.
    if scan.flat:
        yield f"{scan.flat} of {scan.sampled} slices hold a single value: are they empty?"


def _of_bag(bag: InstanceAttrs) -> Iterator[str]:
    if bag.unreadable_tiles:
        yield f"{bag.unreadable_tiles} unreadable places of the slide counted as white"
    # They take glass for tissue more easily.
    if "fallback" in (*bag.marks, *(bag.tissue.marks if bag.tissue else ())):
        yield "tissue found only with loosened thresholds"
    # Smoothing over a graph then changes nothing.
    if bag.zero_edges:
        yield "no two tiles are neighbours"
    # The size of a tile on the tissue is unknown, too.
    if bag.modality == "wsi" and bag.mpp is None:
        yield "resolution unknown"
    # What a person drew was meant to count; classes are ignored on purpose.
    if left_out := bag.annotation_counts.left_out:
        yield f"annotation not used: {', '.join(f'{n} {name}' for name, n in left_out.items())}"
    # Copies, or a second reconstruction.
    if bag.slices_at_one_position:
        yield f"{bag.slices_at_one_position} slices at the position of another"
    # Values that wrapped around are guessed, see `preprocessing.scans.windows`.
    if bag.slices_repaired_12bit:
        yield f"{bag.slices_repaired_12bit} slices repaired (12-bit)"
