"""Tables and lines on the screen: coloured on a terminal, plain elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from preprocessing.status import STATES, Total
from smmil.cli.doctor import Check
from smmil.cli.estimate import Estimate, as_bytes, rounded
from smmil.cli.jobs import as_duration
from smmil.cli.pipeline import Setup
from smmil.cli.status import dataset_status, not_ok, training_states
from smmil.cli.survey import Survey

STYLES = {"ok": "green", "warning": "yellow", "missing": "bold red"}
PLAIN_WIDTH = 160
SHOWN_FAULTS = 20
REFRESH_SECONDS = 3


def console() -> Console:
    """Return a console for stdout; without a terminal, lines are not wrapped at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def table(*columns: str) -> Table:
    """Return an empty table; columns whose name starts with `>` hold numbers."""
    result = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in columns:
        result.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return result


def print_checks(checks: Iterable[Check]) -> int:
    """Print each check as soon as it is made; return 1 if something is missing, else 0."""
    screen, missing = console(), 0
    for check in checks:
        missing += check.state == "missing"
        line = Text.assemble((f"{check.state:<8}", STYLES[check.state]), f" {check.name}: {check.text}")
        screen.print(line, soft_wrap=True)
        if check.remedy and check.state != "ok":
            screen.print(Text(f"{'':<8} -> {check.remedy}", style="bold"), soft_wrap=True)
    return 1 if missing else 0


def with_bar(images: Sequence[Path]) -> Iterable[Path]:
    """Iterate over images with a progress bar on a terminal."""
    console = Console(stderr=True)
    return track(images, "reading headers", console=console, disable=not sys.stderr.isatty(), transient=True)


def print_survey(survey: Survey, files: Sequence[Path]) -> None:
    """Print what a folder holds, what cannot be read, the files written (configuration first), and what to do next."""
    screen, rows = console(), Counter[tuple[str, str]]()
    for finding in survey.findings:
        if not finding.fault:
            resolution = f"{finding.mpp:.3g} um/px" if finding.mpp else "none stated"
            rows[finding.format or "unknown", "slices" if finding.modality == "ct" else resolution] += 1
    sheet = table("format", "resolution", ">images")
    for (name, resolution), count in sorted(rows.items()):
        sheet.add_row(name, resolution, f"{count:,}")
    screen.print(sheet)
    for finding in survey.faulty[:SHOWN_FAULTS]:
        screen.print(Text(f"cannot be read: {finding.image}: {finding.fault}", style="yellow"), soft_wrap=True)
    if len(survey.faulty) > SHOWN_FAULTS:
        screen.print(f"... and {len(survey.faulty) - SHOWN_FAULTS} more, see the column `skip` of the manifest")
    if survey.others:
        others = ", ".join(f"{count} x {suffix}" for suffix, count in survey.others.most_common(8))
        screen.print(f"neither slide nor scan: {others}", soft_wrap=True)
    option = "" if files[0].name == "mine.yaml" else f" -c {files[0]}"
    screen.print(f"\nwritten: {', '.join(map(str, files))}", soft_wrap=True)
    screen.print(
        f"next: fill in `label` in {' and '.join(map(str, files[1:]))}, then `smmil qc{option}`", soft_wrap=True
    )


def status_view(setup: Setup, *, every_bag: bool = False) -> Group:
    """Return the state of a study: a table of stages, the bags that are not ok or all, and a table of trainings.

    Raises:
        ValueError: a file of the results is damaged.
    """
    lines: list[RenderableType] = []
    totals: list[tuple[str, Total]] = []
    for name in setup.config.used:
        status = dataset_status(setup.config, name)
        if status is None:
            lines.append(Text(f"{name}: bags are not listed yet"))
            continue
        summary, bags = status
        totals += [(name, row) for row in summary.stages]
        chosen = bags if every_bag else not_ok(bags)[:SHOWN_FAULTS]
        for bag in chosen:
            style = {"ok": "", "failed": "red"}.get(bag.state, "yellow")
            reason = bag.reason or bag.warnings or (f"{bag.n} instances" if bag.n else "")
            lines.append(Text(f"{name} {bag.stage} {bag.bag_id}: {bag.state}, {reason}", style=style))
        if not every_bag and (more := len(not_ok(bags)) - len(chosen)):
            lines.append(Text(f"... and {more} more of {name}: --bags lists all"))
        if summary.warnings:
            lines.append(Text(f"{name}: warnings: {len(summary.warnings)}, see `smmil qc{setup.options}`"))
    trainings = table("training", ">runs", "state", "last report")
    for training in training_states(setup.config):
        title = f"{training.dataset}/{training.encoder}/{training.method}"
        trainings.add_row(title, f"{training.done} of {training.total}", training.state, training.text)
    parts: list[Sequence[RenderableType]] = [[_stages(totals)] if totals else [], lines]
    parts.append([trainings] if trainings.row_count else [])
    return Group(*[item for part in parts if part for item in ("", *part)][1:])


def _stages(totals: Sequence[tuple[str, Total]]) -> Table:
    """Return a table with a row per dataset and stage, without states in which no bag is."""
    states = [state for state in STATES if any(getattr(row, state) for _, row in totals)]
    sheet = table("dataset", "stage", ">bags", *(f">{state}" for state in states), ">tiles", ">tiles/s")
    for name, row in totals:
        numbers = [*(getattr(row, state) for state in states), row.instances, row.tiles_per_second]
        sheet.add_row(name, row.stage, f"{row.bags:,}", *(f"{number:,.0f}" if number else "" for number in numbers))
    return sheet


def print_status(setup: Setup, *, every_bag: bool = False, watch: bool = False) -> None:
    """Print the state of a study, once or again and again until Ctrl-C; raises as `status_view`."""
    screen = console()
    if not watch or not screen.is_terminal:
        screen.print(status_view(setup, every_bag=every_bag), soft_wrap=True)
        return
    with Live(status_view(setup), console=screen, auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(REFRESH_SECONDS)
                live.update(status_view(setup, every_bag=every_bag), refresh=True)
        except KeyboardInterrupt:
            return


def print_estimate(estimate: Estimate) -> None:
    """Print what a run will take, and what that rests on."""
    screen = console()
    sheet = table("stage", "dataset", "amount", ">files", ">disk", ">time")
    for item in (*estimate.items, estimate.total):
        disk = [rounded(item.files), as_bytes(item.bytes)] if item.bytes else ["", ""]
        style = "bold" if item is not estimate.items[-1] and item.stage == "in all" else ""
        sheet.add_row(item.stage, item.dataset, item.amount, *disk, as_duration(item.seconds), style=style)
    screen.print(sheet)
    for line in estimate.basis:
        screen.print(Text(line, style="dim"), soft_wrap=True)
