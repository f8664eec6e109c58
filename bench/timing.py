"""Comparing ours with a peer: interleaved repetitions in one process, minimum of the process's CPU time.

In: two functions without arguments. Out: seconds of each, and a `Row` per case for the table or the JSON list.
CPU time, because a shared machine stops a process as it likes; the minimum, because disturbances only add; interleaved,
because clock and caches drift. With several threads CPU time adds up over them, so then the wall clock counts.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.fitting import text_table

log = logging.getLogger(__name__)
Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of a bench.

    Attributes:
        name: of the case.
        ours: our figure, None = ours was not measured.
        peer: the peer's figure, None = no peer, or one that cannot run.
        ratio: peer / ours (of times: how many times faster ours is), None without both.
        target: the least ratio wanted; of a row without a peer the largest `ours`; None = it has to run.
        unit: of `ours` and `peer`.
    """

    name: str
    ours: float | None
    peer: float | None
    ratio: float | None
    target: float | None
    unit: str


@dataclass(frozen=True)
class Case:
    """A comparison to be made.

    Attributes:
        key: name on the command line, group/shape.
        name: in the table.
        make: prepares both sides and returns their steps; the peer's may be None.
        target: the least ratio, None = ours has to run.
    """

    key: str
    name: str
    make: Callable[[], tuple[Step, Step | None]]
    target: float | None


def seconds(steps: Sequence[Step], *, budget: float = 4.0, rounds: int = 30, wall: bool = False) -> list[float]:
    """Smallest time of every step; they take turns.

    Args:
        steps: functions without arguments.
        budget: seconds that all repetitions of one step may take; a step whose first call is longer runs once only.
        rounds: most repetitions.
        wall: wall clock instead of CPU time.

    Returns:
        Seconds, in the order of `steps`.
    """
    clock = time.perf_counter if wall else time.process_time

    def once(step: Step) -> float:
        start = clock()
        step()
        return clock() - start

    first = [once(step) for step in steps]
    # the first call also allocates and builds: it counts only where there is no time for another one
    best = [duration if duration > budget else float("inf") for duration in first]
    spent = [0.0] * len(steps)
    for number in range(rounds):
        for i, step in enumerate(steps):
            if first[i] <= budget and (number < 2 or spent[i] < budget):
                duration = once(step)
                best[i], spent[i] = min(best[i], duration), spent[i] + duration
    return best


def run_case(case: Case, *, budget: float, wall: bool = False) -> Row:
    """Prepares and times one case."""
    ours, peer = case.make()
    times = [1e3 * t for t in seconds([ours] if peer is None else [ours, peer], budget=budget, wall=wall)]
    if peer is None:
        return Row(case.name, times[0], None, None, case.target, "ms")
    return Row(case.name, times[0], times[1], times[1] / times[0], case.target, "ms")


def chosen(cases: Sequence[Case], text: str | None) -> list[Case]:
    """The cases whose key, or a part of it before or after a slash, is named.

    Raises:
        ValueError: a name without a case.
    """
    if text is None:
        return list(cases)
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    known = {part for case in cases for part in (case.key, *case.key.split("/"))}
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"--cases: found {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return [case for case in cases if {case.key, *case.key.split("/")} & set(wanted)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--cases, --json, --quick, --scale, --budget and --threads."""
    parser.add_argument("--cases", help="comma-separated keys, or parts of keys, as in the first column (default: all)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--quick", action="store_true", help="an eighth of the size, few repetitions; not for quoting")
    parser.add_argument("--scale", type=float, help="share of the instances of a bag, or of the bags of a batch")
    parser.add_argument("--budget", type=float, help="seconds of repetitions for each side (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more than one: wall clock")


def scale_of(arguments: argparse.Namespace) -> float:
    """Share of the full size.

    Raises:
        ValueError: not in (0, 1].
    """
    scale = arguments.scale if arguments.scale is not None else 0.125 if arguments.quick else 1.0
    if not 0 < scale <= 1:
        raise ValueError(f"--scale: found {scale}, expected a share in (0, 1]")
    return float(scale)


def budget_of(arguments: argparse.Namespace) -> float:
    """Seconds of repetitions."""
    return float(arguments.budget if arguments.budget is not None else 0.3 if arguments.quick else 4.0)


def run(cases: Sequence[Case], arguments: argparse.Namespace) -> int:
    """Runs the chosen cases one after the other and prints them."""
    import torch

    torch.set_num_threads(arguments.threads)
    # the first such call imports modules for a third of a second, longer than a quick row's budget
    one = torch.ones(1, requires_grad=True)
    torch.autograd.grad(2 * one, one, torch.ones(1))
    rows = []
    for case in chosen(cases, arguments.cases):
        torch.manual_seed(0)
        rows.append(run_case(case, budget=budget_of(arguments), wall=arguments.threads > 1))
        log.info("%s: %s", case.key, as_line(rows[-1]))
    show(rows, as_json=arguments.json)
    return 0


def show(rows: Iterable[Row], *, as_json: bool) -> None:
    """Prints the table, or nothing but the JSON list."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(text_table(["case", "ours", "peer", "unit", "ratio", "target", "met"], [cells(row) for row in rows]))


def met(row: Row) -> bool:
    """Whether a row reaches its target."""
    if row.ours is None or (row.ratio is None and row.peer is None and row.target is None):
        return row.ours is not None
    if row.ratio is None:
        return row.target is None or row.ours <= row.target
    return row.target is None or row.ratio >= row.target


def cells(row: Row) -> list[str]:
    """A row as text."""
    numbers = [("-" if v is None else f"{v:.2f}") for v in (row.ours, row.peer)]
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
    target = "runs" if row.target is None else f"{row.target:.2f}" + ("" if row.ratio is None else "x")
    return [row.name, *numbers, row.unit, ratio, target, "yes" if met(row) else "no"]


def as_line(row: Row) -> str:
    """A row for the log."""
    return " ".join(cells(row)[1:])
