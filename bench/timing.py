"""Time ours against a peer: repetitions in turn in one process, minimum of the process's CPU time.

CPU time, because other processes interrupt this one; the minimum, because disturbances only add; in turn, because clock
rate and caches drift. CPU time adds up over threads, so the wall clock is used with several.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Step = Callable[[], object]
ROUNDS = 30


@dataclass(frozen=True)
class Row:
    """One line of a bench.

    Attributes:
        name: of the case.
        ours: our value, None = it could not be measured.
        peer: the peer's value, None = no peer, or one that cannot run.
        target: smallest peer / ours to reach, or without a peer the largest `ours`; None = it has to run.
        unit: of both values.
    """

    name: str
    ours: float | None
    peer: float | None
    target: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        return self.peer / self.ours if self.peer is not None and self.ours is not None else None

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        if self.ours is None or self.target is None:
            return self.ours is not None
        return self.ours <= self.target if self.ratio is None else self.ratio >= self.target


@dataclass(frozen=True)
class Case:
    """A comparison to be made.

    Attributes:
        key: name on the command line, group/shape.
        name: in the table.
        make: prepares both sides and returns their steps; the peer's may be None.
        target: smallest ratio to reach, None = ours has to run.
        items: tiles that one repetition handles; times are per item.
        unit: of the times, starting with "ms".
    """

    key: str
    name: str
    make: Callable[[], tuple[Step, Step | None]]
    target: float | None
    items: int = 1
    unit: str = "ms"


def seconds(steps: Sequence[Step], *, budget: float, wall: bool = False) -> list[float]:
    """Measure the smallest time of every step in seconds; the steps take turns.

    Args:
        steps: functions without arguments.
        budget: seconds for all repetitions of a step; one whose first call takes longer is not repeated.
        wall: wall clock instead of CPU time.
    """
    clock = time.perf_counter if wall else time.process_time

    def timed(step: Step) -> float:
        start = clock()
        step()
        return clock() - start

    first = [timed(step) for step in steps]
    # the first call also imports and allocates, so it counts only where it is the only one
    best = [float("inf") if duration <= budget else duration for duration in first]
    spent = [0.0 if duration <= budget else budget for duration in first]
    for _ in range(ROUNDS):
        for i, step in enumerate(steps):
            if spent[i] < budget:
                duration = timed(step)
                best[i], spent[i] = min(best[i], duration), spent[i] + duration
    return best


def run_case(case: Case, *, budget: float, wall: bool = False) -> Row:
    """Prepare and time one case."""
    steps = [step for step in case.make() if step is not None]
    ours, *peer = (1e3 * duration / case.items for duration in seconds(steps, budget=budget, wall=wall))
    return Row(case.name, ours, peer[0] if peer else None, case.target, case.unit)


def chosen(cases: Sequence[Case], text: str | None) -> list[Case]:
    """Select the cases whose key, or a part of it before or after a slash, is named.

    Raises:
        ValueError: a name without a case.
    """
    if text is None:
        return list(cases)
    requested = {name.strip() for name in text.split(",") if name.strip()}
    known = {part for case in cases for part in (case.key, *case.key.split("/"))}
    if unknown := sorted(requested - known):
        raise ValueError(f"--cases: found {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return [case for case in cases if {case.key, *case.key.split("/")} & requested]


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `bench.NAME` with the options that all benches share."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(doc or "").split("\n")[0])
    parser.add_argument("--cases", help="comma-separated keys, or parts of keys such as 10k (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the instances of a bag, or of the bags")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of repetitions for each side")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more than one: wall clock")
    return parser


def run(cases: Sequence[Case], arguments: argparse.Namespace) -> list[Row]:
    """Run the chosen cases one after the other and print them."""
    import torch

    torch.set_num_threads(arguments.threads)
    # the first such call imports modules for a third of a second
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(2 * x, x, torch.ones(1))
    rows = []
    for case in chosen(cases, arguments.cases):
        torch.manual_seed(0)
        rows.append(run_case(case, budget=arguments.budget, wall=arguments.threads > 1))
    show(rows)
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    lines = [("case", "ours", "peer", "unit", "ratio", "target", "met")]
    for row in rows:
        ours, peer, ratio, target = (
            "-" if value is None else f"{value:.2f}" for value in (row.ours, row.peer, row.ratio, row.target)
        )
        lines.append((row.name, ours, peer, row.unit, ratio, target, "yes" if row.met else "no"))
    print(text_table(lines))


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Align columns to their widest cell, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
