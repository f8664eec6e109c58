"""Comparing ours with a peer where every repetition needs a fresh start: files opened anew, caches empty.

In: trials. Out: `bench.timing.Row` per trial, per item (tile, slice, bag). A side is prepared outside the timed region
before each repetition. Both sides run once untimed and their results are compared before anything is timed. Minimum of
the process's CPU time (all its threads), or of the wall clock where one is asked for.
"""

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bench.timing import Case, Row, Step, as_line, budget_of, chosen, show

log = logging.getLogger(__name__)
T = TypeVar("T")


class Different(RuntimeError):
    """The two sides of a bench did not compute the same."""


class Fresh(Generic[T]):
    """A step that works on something made anew for every repetition."""

    def __init__(self, make: Callable[[], T], work: Callable[[T], object], close: Callable[[T], object]) -> None:
        self._make, self._work, self._close = make, work, close
        self._made: T | None = None

    def prepare(self) -> None:
        """Closes what the last repetition left and makes it anew."""
        self.finish()
        self._made = self._make()

    def finish(self) -> None:
        """Closes what is open."""
        made, self._made = self._made, None
        if made is not None:
            self._close(made)

    def __call__(self) -> object:
        """The timed part."""
        assert self._made is not None
        return self._work(self._made)


@dataclass(frozen=True)
class Trial(Case):
    """A case whose sides give results that can be compared.

    Attributes:
        check: gets both results (the peer's is None without a peer); raises `Different`.
        items: what one repetition handles.
        unit: of the figures; "ms" per item, or "s".
        rounds: most repetitions.
    """

    check: Callable[[Any, Any], None] | None = None
    items: int = 1
    unit: str = "ms"
    rounds: int = 20


def run_trial(trial: Trial, *, budget: float, wall: bool = False) -> Row:
    """Compares and times one trial.

    Raises:
        Different: the sides disagree.
    """
    steps = [step for step in trial.make() if step is not None]
    clock = time.perf_counter if wall else time.process_time
    try:
        results = [_once(step, clock)[1] for step in steps]
        if trial.check is not None:
            trial.check(results[0], results[1] if len(results) > 1 else None)
        del results
        best, spent = [float("inf")] * len(steps), 0.0
        for number in range(trial.rounds):
            if number and spent > budget * len(steps):
                break
            for i, step in enumerate(steps):
                duration = _once(step, clock)[0]
                best[i], spent = min(best[i], duration), spent + duration
    finally:
        for step in steps:
            if isinstance(step, Fresh):
                step.finish()
    scale = {"ms": 1e3, "s": 1.0}[trial.unit.split()[0]] / trial.items
    times = [duration * scale for duration in best]
    if len(times) == 1:
        return Row(trial.name, times[0], None, None, trial.target, trial.unit)
    return Row(trial.name, times[0], times[1], times[1] / times[0], trial.target, trial.unit)


def _once(step: Step, clock: Callable[[], float]) -> tuple[float, object]:
    if isinstance(step, Fresh):
        step.prepare()
    start = clock()
    result = step()
    return clock() - start, result


def run_trials(trials: Sequence[Trial], arguments: argparse.Namespace) -> int:
    """Runs the chosen trials one after the other and prints them."""
    show(rows_of(trials, arguments), as_json=arguments.json)
    return 0


def rows_of(trials: Sequence[Trial], arguments: argparse.Namespace) -> list[Row]:
    """The rows of the chosen trials."""
    import torch

    torch.set_num_threads(arguments.threads)
    wanted = {case.key for case in chosen(trials, arguments.cases)}
    rows = []
    for trial in trials:
        if trial.key in wanted:
            rows.append(run_trial(trial, budget=budget_of(arguments), wall=arguments.threads > 1))
            log.info("%s: %s", trial.key, as_line(rows[-1]))
    return rows
