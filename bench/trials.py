"""Other names of the cases in `bench.timing`."""

from bench.timing import Case as Trial
from bench.timing import Different
from bench.timing import run as run_trials

__all__ = ["Different", "Trial", "run_trials"]
