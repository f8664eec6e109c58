"""Time ours against a peer: interleaved repetitions in one process, minimum of the process's CPU time.

CPU time, because other processes interrupt this one; the minimum, because disturbances only add; interleaved, because
clock rate and caches drift. CPU time adds up over threads, so the wall clock is used with several.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from bench.fitting import text_table

log = logging.getLogger(__name__)
T = TypeVar("T")
Step = Callable[[], object]


class Different(RuntimeError):
    """The two sides of a bench did not compute the same."""


@dataclass(frozen=True)
class Fresh(Generic[T]):
    """A step that works on an object made before, and closed after, every repetition; only `work` is timed."""

    make: Callable[[], T]
    work: Callable[[T], object]
    close: Callable[[T], object]

    def __call__(self) -> object:
        """Run one repetition."""
        return _timed(self, time.perf_counter)[1]


@dataclass(frozen=True)
class Row:
    """One line of a bench.

    Attributes:
        name: of the case.
        ours: our value, None = it could not be measured.
        peer: the peer's value, None = no peer, or one that cannot run.
        ratio: peer / ours (of times: how many times faster ours is), None without both.
        target: smallest ratio to reach, or without a peer the largest `ours`; None = it has to run.
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
        target: smallest ratio to reach, None = ours has to run.
        check: gets the results of both steps; raises `Different`.
        items: tiles, slices, ... that one repetition handles; times are per item.
        unit: of the times, starting with "ms".
    """

    key: str
    name: str
    make: Callable[[], tuple[Step, Step | None]]
    target: float | None
    check: Callable[[Any, Any], None] | None = None
    items: int = 1
    unit: str = "ms"


def seconds(
    steps: Sequence[Step],
    *,
    check: Callable[..., None] | None = None,
    budget: float = 4.0,
    rounds: int = 30,
    wall: bool = False,
) -> list[float]:
    """Measure the smallest time of every step; the steps take turns.

    Args:
        steps: functions without arguments.
        check: called with the results of the first calls, before the repetitions.
        budget: seconds for all repetitions of a step; without `check`, a step whose first call takes longer is not
            repeated.
        rounds: most repetitions.
        wall: wall clock instead of CPU time.

    Returns:
        Seconds, in the order of `steps`.
    """
    clock = time.perf_counter if wall else time.process_time
    first, results = zip(*(_timed(step, clock) for step in steps), strict=True)
    if check is not None:
        check(*results)
    del results
    # the first call also imports and allocates, so it counts only for slow steps whose results are not compared
    least = [2 if duration <= budget else int(check is not None) for duration in first]
    best = [float("inf") if n else duration for n, duration in zip(least, first, strict=True)]
    spent = [0.0] * len(steps)
    for number in range(rounds):
        for i, step in enumerate(steps):
            if number < least[i] or (least[i] and spent[i] < budget):
                duration = _timed(step, clock)[0]
                best[i], spent[i] = min(best[i], duration), spent[i] + duration
    return best


def _timed(step: Step, clock: Callable[[], float]) -> tuple[float, object]:
    if isinstance(step, Fresh):
        made = step.make()
        try:
            return _timed(lambda: step.work(made), clock)
        finally:
            step.close(made)
    start = clock()
    result = step()
    return clock() - start, result


def run_case(case: Case, *, budget: float, wall: bool = False) -> Row:
    """Prepare, compare and time one case.

    Raises:
        Different: the sides disagree.
    """
    steps = [step for step in case.make() if step is not None]
    times = [1e3 * t / case.items for t in seconds(steps, check=case.check, budget=budget, wall=wall)]
    peer = times[1] if len(times) > 1 else None
    return Row(case.name, times[0], peer, None if peer is None else peer / times[0], case.target, case.unit)


def chosen(cases: Sequence[Case], text: str | None) -> list[Case]:
    """Select the cases whose key, or a part of it before or after a slash, is named.

    Raises:
        ValueError: a name without a case.
    """
    if text is None:
        return list(cases)
    requested = [name.strip() for name in text.split(",") if name.strip()]
    known = {part for case in cases for part in (case.key, *case.key.split("/"))}
    if unknown := sorted(set(requested) - known):
        raise ValueError(f"--cases: found {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return [case for case in cases if {case.key, *case.key.split("/")} & set(requested)]


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `bench.NAME` with the options that all benches share."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(doc or "").split("\n")[0])
    parser.add_argument("--cases", help="comma-separated keys, or parts of keys, as in the first column (default: all)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--quick", action="store_true", help="an eighth of the size, few repetitions; not for quoting")
    parser.add_argument("--scale", type=float, help="share of the instances of a bag, or of the bags of a batch")
    parser.add_argument("--budget", type=float, help="seconds of repetitions for each side (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more than one: wall clock")
    return parser


def scale_of(arguments: argparse.Namespace) -> float:
    """Return the share of the full size.

    Raises:
        ValueError: not in (0, 1].
    """
    scale = arguments.scale if arguments.scale is not None else 0.125 if arguments.quick else 1.0
    if not 0 < scale <= 1:
        raise ValueError(f"--scale: found {scale}, expected a share in (0, 1]")
    return float(scale)


def run(cases: Sequence[Case], arguments: argparse.Namespace) -> int:
    """Run the chosen cases one after the other and print them."""
    import torch

    budget = arguments.budget if arguments.budget is not None else 0.3 if arguments.quick else 4.0

    torch.set_num_threads(arguments.threads)
    # the first such call imports modules for a third of a second, longer than a quick row's budget
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(2 * x, x, torch.ones(1))
    rows = []
    for case in chosen(cases, arguments.cases):
        torch.manual_seed(0)
        rows.append(run_case(case, budget=budget, wall=arguments.threads > 1))
        log.info("%s: %s", case.key, " ".join(cells(rows[-1])[1:]))
    show(rows, as_json=arguments.json)
    return 0


def show(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print the table, or nothing but the JSON list."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(text_table(["case", "ours", "peer", "unit", "ratio", "target", "met"], [cells(row) for row in rows]))


def met(row: Row) -> bool:
    """Return whether a row reaches its target."""
    if row.ours is None or row.target is None:
        return row.ours is not None
    return row.ours <= row.target if row.ratio is None else row.ratio >= row.target


def cells(row: Row) -> list[str]:
    """Format a row as text."""
    numbers = [("-" if v is None else f"{v:.2f}") for v in (row.ours, row.peer)]
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
    target = "runs" if row.target is None else f"{row.target:.2f}" + ("" if row.ratio is None else "x")
    return [row.name, *numbers, row.unit, ratio, target, "yes" if met(row) else "no"]
