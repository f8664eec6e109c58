"""What the tests of the benches share."""

import json
from collections.abc import Callable

import pytest

KEYS = {"name", "ours", "peer", "ratio", "target", "unit"}


@pytest.fixture
def bench_rows(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict]]:
    """Run the main function of a bench and return its JSON rows."""

    def run(main: Callable[[list[str]], int], arguments: list[str]) -> list[dict]:
        assert main([*arguments, "--json", "--budget", "0"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert all(set(row) == KEYS for row in rows)
        assert all(row["ratio"] is None or row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)
        return rows

    return run
