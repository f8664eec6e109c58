"""Print what every method is compared with and where it departs from its original: `docs/reference/methods.md`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from preprocessing.common.cli import guard
from smmil.config.methods import METHODS
from smmil.tables.originals import Original, original_of

INTRODUCTION = """# Methods and their originals

The paper used "original implementations and default configurations". This page, printed by
`python -m smmil.methods`, says for each of the {n} rows of the tables where it comes from, how it was checked, and
where it departs from the original by choice. Everything else is the original's: where its code runs, logits,
instance scores, losses and gradients agree in float64 with the numbers in `tests/golden`, which the original code gave
with the same weights (`pytest tests/models/test_golden.py`, tolerance 1e-10; {coarse}).

All methods share what the paper gives to all: the embedding Linear(P, 512) + GELU, one logit per bag with binary cross
entropy (the original's two logits are c1 - c0), Adam without weight decay, the schedule and the splits.

Options go into `method_options`, for example `method_options: {{clam: {{embed_act: relu}}}}`.
"""
COARSE = "1e-6 for the graphs, whose weights the original computes in float32"


def page() -> str:
    """Return `docs/reference/methods.md`."""
    rows: dict[Original, list[str]] = {}
    for method in METHODS.values():
        original = original_of(method.key)
        if original is not None:
            rows.setdefault(original, []).append(f"{method.name} (`{method.key}`)")
    parts = [INTRODUCTION.format(n=len(METHODS), coarse=COARSE), *(_section(*row) for row in rows.items())]
    return "\n".join(parts)


def _section(original: Original, names: Sequence[str]) -> str:
    golden = ", ".join(f"`{prefix}*`" for prefix in original.fixtures)
    checks = [f"golden fixtures {golden}"] if golden else []
    lines = [
        f"## {', '.join(names)}",
        "",
        f"- Original: {original.paper}; {original.code or 'no code to compare with'}.",
        f"- Checked against: {'; '.join([*checks, *filter(None, [original.check])])}.",
    ]
    if not original.departures:
        return "\n".join([*lines, "- Departures: none.", ""])
    lines += ["", "| departure | why | restored by |", "|---|---|---|"]
    lines += [f"| {d.ours} | {d.why} | {d.option or 'nothing'} |" for d in original.departures]
    return "\n".join([*lines, ""])


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print where every method comes from and where it departs from its original, as Markdown."""
    argparse.ArgumentParser(prog="python -m smmil.methods", description=main.__doc__).parse_args(argv)
    print(page(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
