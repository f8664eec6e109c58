"""Where the workflow and its code lie: in a checkout of the repository, or in an installed package."""

import uuid
from pathlib import Path

PACKAGES = ("smmil", "preprocessing")
_PACKAGE = Path(__file__).resolve().parent


def workflow_folder() -> Path:
    """Return the folder of Snakefile, config.yaml, workflow/, profiles/ and envs/."""
    installed = _PACKAGE / "_pipeline"
    return installed if installed.is_dir() else _PACKAGE.parent


def import_folder(basedir: Path, scratch: Path) -> Path:
    """Return a folder that holds the packages of this project and no others, for PYTHONPATH of the jobs.

    A checkout is such a folder. An installed package lies among hundreds of others, which would hide those of a conda
    environment, so `scratch` gets a link to each package.

    Args:
        basedir: folder of the Snakefile.
        scratch: folder for the links.
    """
    if basedir.name != "_pipeline":
        return basedir
    scratch.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        link, target = scratch / package, basedir.parents[1] / package
        if not link.exists() or not link.samefile(target):
            # renamed, because jobs that start at once make the same link
            fresh = scratch / uuid.uuid4().hex
            fresh.symlink_to(target, target_is_directory=True)
            fresh.replace(link)
    return scratch.absolute()
