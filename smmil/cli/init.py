"""Write a configuration and manifests for a folder of slides and scans."""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.bags.checks import MAX_ID
from preprocessing.common.files import write_text
from preprocessing.datasets.custom import REQUIRED, WSI_SUFFIXES
from preprocessing.features.encoders import ENCODERS
from preprocessing.scans.folder import DICOM_SUFFIXES
from smmil.cli.survey import Finding, Survey

ENCODER_OF = {"wsi": "resnet50_bt", "ct": "resnet50"}
NAME_OF = {"wsi": "slides", "ct": "scans"}
SCANS = "    instances: {ct: {preset: paper}}    # windows 40/80, 80/200, 40/380 HU (brain); others: sa_mil, bone\n"
MAX_SKIP = 300
# um/px; a slide may be coarser by `mpp_tolerance` of its preset
TARGET_MPP, TOLERANCE = 0.5, 1.1
_KEPT = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX = re.compile(f"({'|'.join(map(re.escape, (*WSI_SUFFIXES, *DICOM_SUFFIXES)))})$", re.IGNORECASE)


@dataclass(frozen=True)
class Dataset:
    """A dataset to be written: its name in the configuration, "wsi" or "ct", its manifest, and its images."""

    name: str
    modality: str
    manifest: Path
    findings: Sequence[Finding]

    @property
    def usable(self) -> list[Finding]:
        """Return the images that can be read."""
        return [finding for finding in self.findings if not finding.fault]


def plan_datasets(survey: Survey, config: Path) -> list[Dataset]:
    """Make one dataset of the slides and one of the scans; a single one is called like the configuration file.

    Raises:
        ValueError: nothing that can be read.
    """
    modalities = [modality for modality in NAME_OF if survey.usable(modality)]
    if not modalities:
        reasons = "".join(f"\n  {finding.image}: {finding.fault}" for finding in survey.faulty[:5])
        raise ValueError(f"{survey.root}: found no readable slide or scan{reasons}")
    single = re.sub(r"\W+", "_", config.stem, flags=re.ASCII).strip("_")
    single = single if single.isidentifier() else "mine"
    if len(modalities) == 1:
        # a damaged image of the other kind is named in the only manifest
        return [Dataset(single, modalities[0], config.with_name("manifest.csv"), survey.findings)]
    return [
        Dataset(
            NAME_OF[modality],
            modality,
            config.with_name(f"manifest_{NAME_OF[modality]}.csv"),
            [finding for finding in survey.findings if finding.modality == modality],
        )
        for modality in modalities
    ]


def write_study(survey: Survey, config: Path, *, force: bool = False) -> list[Path]:
    """Write the configuration and, beside it, the manifests of a folder; return the files, the configuration first.

    Raises:
        ValueError: nothing that can be read, or a file exists and `force` is not set.
    """
    datasets = plan_datasets(survey, config)
    files = [config, *(dataset.manifest for dataset in datasets)]
    existing = [str(file) for file in files if file.exists()]
    if existing and not force:
        raise ValueError(
            f"{', '.join(existing)}: exists; labels may be filled in there. Start in another folder, or overwrite with "
            "--force"
        )
    for dataset in datasets:
        write_text(dataset.manifest, manifest_text(dataset.findings))
    write_text(config, config_text(survey.root, config, datasets))
    return files


def manifest_text(findings: Sequence[Finding]) -> str:
    """Return a manifest whose labels are to be filled in; images that cannot be read are skipped by name."""
    stream = io.StringIO()
    columns = [*REQUIRED, "group", "annotation", "mpp", "skip", "file_info"]
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    names = bag_ids([finding.image for finding in findings])
    for name, finding in zip(names, findings, strict=True):
        row = {"bag_id": name, "image": finding.image, "annotation": finding.outlines}
        row["group"] = f"patient_{finding.patient}" if finding.patient is not None else ""
        # the reason to skip a bag is short text without `|`
        row["skip"] = finding.fault.replace("|", "/")[:MAX_SKIP]
        row["file_info"] = "" if finding.fault else finding.file_info
        writer.writerow(row)
    return stream.getvalue()


def bag_ids(images: Sequence[str]) -> list[str]:
    """Return a short unique name for each image: the file's, with the folders above it where needed."""
    parts = [[_KEPT.sub("_", part).strip("._-") for part in _SUFFIX.sub("", image).split("/")] for image in images]
    depth, longer = [0] * len(images), [True] * len(images)
    while any(longer):
        depth = [n + more for n, more in zip(depth, longer, strict=True)]
        names = ["_".join(filter(None, part[-n:]))[-MAX_ID:] for part, n in zip(parts, depth, strict=True)]
        names = [name.lstrip("._-") or "bag" for name in names]
        # names are compared without case, as some file systems do
        counts = Counter(map(str.casefold, names))
        twice = [counts[name.casefold()] > 1 for name in names]
        longer = [again and n < len(part) for again, n, part in zip(twice, depth, parts, strict=True)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        if twice[i]:
            seen[name.casefold()] += 1
            names[i] = f"{name[: MAX_ID - 8]}_{seen[name.casefold()]}"
    return names


def config_text(root: Path, config: Path, datasets: Sequence[Dataset]) -> str:
    """Return the configuration as commented YAML."""
    manifests = " and ".join(dataset.manifest.name for dataset in datasets)
    option = "" if config.name == "mine.yaml" else f" -c {config.name}"
    counts = ", ".join(f"{len(dataset.usable)} {NAME_OF[dataset.modality]}" for dataset in datasets)
    return (
        f"# Settings of a study of {counts} in {root}.\n"
        f"# 1. Fill in `label` (0 or 1) in {manifests}; a bag without label is only scored.\n"
        "#    `group` is the patient, so that no patient is on both sides of a split.\n"
        f"# 2. smmil qc{option}            look at the tissue masks\n"
        f"# 3. smmil run --plan{option}    what it will take\n"
        f"# 4. smmil run{option}           training and report\n"
        f"# `smmil config {config.name}` checks this file and prints every other key.\n\n"
        "preset: study                    # defaults for data of your own; workflow/study.yaml lists them\n"
        "results: results                 # folder of everything that is computed\n"
        f"use: [{', '.join(dataset.name for dataset in datasets)}]\n"
        "datasets:\n" + "".join(_section(root, dataset) for dataset in datasets)
    )


def _section(root: Path, dataset: Dataset) -> str:
    """Return the section of one dataset."""
    encoder = ENCODER_OF[dataset.modality]
    others = ", ".join(name for name in ENCODERS if name != encoder)
    licence = "; non-commercial research only" if encoder == "resnet50_bt" else ""
    # JSON strings are YAML
    return (
        f"  {dataset.name}:\n"
        "    kind: custom\n"
        f"    root: {json.dumps(str(root), ensure_ascii=False)}\n"
        f"    source: {{manifest: {json.dumps(str(dataset.manifest), ensure_ascii=False)}}}\n"
        f"    encoders: [{encoder}]    # feature extractor{licence}; others: {others}\n"
        f"{_slides(dataset.usable) if dataset.modality == 'wsi' else SCANS}"
        "    bags_per_shard: 25           # bags per job\n"
        "    batch_size: 4                # bags per training step\n"
        "    allowed_failures: 0          # unreadable bags per job before it counts as failed\n"
    )


def _slides(findings: Sequence[Finding]) -> str:
    known = [finding.mpp for finding in findings if finding.mpp is not None]
    lines, target = "", TARGET_MPP
    if known:
        # tiles are never enlarged, so the coarsest slide decides
        target *= 2 ** max(0, math.ceil(math.log2(max(known) / (TARGET_MPP * TOLERANCE))))
        lines = f"    # found {min(known):.3g} to {max(known):.3g} um/px at level 0\n"
    if unknown := len(findings) - len(known):
        lines += f"    # {unknown} of the slides without resolution: fill in `mpp` (um/px at level 0) in the manifest\n"
    coarser = "" if target == TARGET_MPP else f", target_mpp: {target:g}"
    what = f"512 px tiles at {target:g} um/px on tissue"
    return f"{lines}    instances: {{wsi: {{preset: 20x{coarser}}}}}    # {what}\n"
