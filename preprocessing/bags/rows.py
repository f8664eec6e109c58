"""`BagRow`, one row of bags.csv, and the paths it holds."""

from dataclasses import dataclass
from pathlib import Path

COLUMNS = (
    "bag_id",
    "modality",
    "images",
    "label",
    "split",
    "group",
    "annotation",
    "annotation_complete",
    "provider",
    "mpp",
    "note",
)
OVERRIDE_COLUMNS = ("skip", "overrides")
MODALITIES = ("wsi", "ct")
SPLITS = ("train", "val", "test", "")
# marks an annotation that lists the state of every slice of a scan
SLICES = "slices:"


@dataclass(frozen=True)
class BagRow:
    """One bag before any pixel is read.

    Attributes:
        bag_id: letters, digits, `.`, `_`, `-`, starting with a letter or digit; unique whatever the case.
        modality: "wsi" or "ct".
        images: paths relative to the dataset's root. WSI: one file; CT: the files of one series.
        label: 0, 1, or None (the bag is only scored).
        split: "train", "val", "test", or "" (the bag is only scored).
        group: patient or study, a running index (never a real identifier); "" = a separate group.
        annotation: "" or a path relative to the root, or for CT "slices:" and one character (0, 1, x = unknown) per
            entry of `images`.
        annotation_complete: whether everything outside the annotation is known to be negative; also True for a
            negative bag without an annotation.
        provider: PANDA's radboud or karolinska, otherwise "".
        mpp: um per px at level 0, replaces the file's metadata.
        note: a remark for readers, e.g. "partly annotated".
        skip: reason why the bag is skipped; "" = it is not.
        overrides: settings of this bag alone, one JSON object with sorted keys (`preprocessing.bags.overrides`), or "".
    """

    bag_id: str
    modality: str
    images: tuple[str, ...]
    label: int | None = None
    split: str = ""
    group: str = ""
    annotation: str = ""
    annotation_complete: bool = True
    provider: str = ""
    mpp: float | None = None
    note: str = ""
    skip: str = ""
    overrides: str = ""


def resolve(root: Path | str, relative: str) -> Path:
    """Resolve a path of `bags.csv`.

    The root itself may be a link; links or `..` inside it that lead out of it are rejected.

    Args:
        root: the dataset's root folder.
        relative: path relative to it (an absolute path is accepted if it lies inside).

    Raises:
        ValueError: the path leaves the root.
    """
    base = Path(root).resolve()
    target = (base / relative).resolve()
    # both are resolved, because an absolute path may contain the link to the root
    if not target.is_relative_to(base):
        raise ValueError(
            f"{relative!r}: leaves the dataset's root {root}; only files inside it are read. "
            "Move the file in, or link the whole root folder instead of single files"
        )
    return target
