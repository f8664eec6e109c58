"""The workflow behind `smmil run`: which configuration counts, which targets exist."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.common.cli import nearest
from smmil.config.experiment import Config, parse_config, read_settings
from smmil.config.targets import FIGURES, TABLES
from smmil.installation import workflow_folder

DEFAULT_CONFIG = Path("mine.yaml")
_RULE = re.compile(r"^rule (\w+):", re.MULTILINE)


@dataclass(frozen=True)
class Setup:
    """The configuration of a command: files of the user, and the result of merging them over the paper's settings."""

    files: tuple[Path, ...]
    config: Config

    @property
    def title(self) -> str:
        """Return the names of the files, for messages."""
        return ", ".join(map(str, self.files)) or "config.yaml of the paper"

    @property
    def options(self) -> str:
        """Return the options with which a command has the same configuration."""
        return "" if self.files == (DEFAULT_CONFIG,) else "".join(f" -c {file}" for file in self.files)


def read_setup(files: Sequence[Path]) -> Setup:
    """Read the configuration of a command.

    Without files, `mine.yaml` in the current folder counts; in a checkout without one, the paper's settings do.

    Raises:
        ValueError: no configuration here, or an invalid one.
    """
    if not files:
        if DEFAULT_CONFIG.is_file():
            files = [DEFAULT_CONFIG]
        elif Path.cwd() != workflow_folder():
            raise ValueError(
                f"no configuration: found no {DEFAULT_CONFIG} in {Path.cwd()}; name one with -c FILE, or write one "
                "with `smmil init FOLDER`"
            )
    return Setup(tuple(files), read_config(files))


def read_config(files: Sequence[Path]) -> Config:
    """Merge configuration files over the settings of the paper or a preset, as the workflow does, and check them."""
    return parse_config(read_settings(files), ", ".join(map(str, files)) or "config.yaml")


def target_names() -> list[str]:
    """Return the targets that have a name: rules without wildcards, tables and figures."""
    folder = workflow_folder()
    names: list[str] = []
    for file in (folder / "Snakefile", *sorted((folder / "workflow/rules").glob("*.smk"))):
        parts = re.split(r"^(?=(?:use )?rule )", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for part in parts:
            # rules with a command of their own make files with wildcards in their names
            if (match := _RULE.match(part)) and "shell:" not in part:
                names.append(match[1])
    return [*names, *TABLES, *FIGURES]


def check_targets(targets: Sequence[str]) -> None:
    """Raise if a target is neither a known name nor the path of a file.

    Raises:
        ValueError: an unknown name; similar ones are given.
    """
    known = target_names()
    for target in targets:
        if target not in known and not set(target) & set("/."):
            raise ValueError(
                f"unknown target {target!r}{nearest(target, known)}; expected a file or one of {', '.join(known)}"
            )
