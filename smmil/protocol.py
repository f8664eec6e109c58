"""Print the differences between the paper's text and the authors' code: the table of `docs/reference/protocol.md`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from preprocessing.common.cli import guard
from smmil.config.quirks import QUIRKS


def markdown_table() -> str:
    """Return the table of `docs/reference/protocol.md`."""
    heads = ("#", "`quirks:`", "acts in", "as written", "as released", "why it matters", "released code, file:line")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, (name, quirk) in enumerate(QUIRKS.items(), start=1):
        cells = (str(row), f"`{name}`", quirk.acts, quirk.written, quirk.released, quirk.why, quirk.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print what every quirk does, as Markdown."""
    argparse.ArgumentParser(prog="python -m smmil.protocol", description=main.__doc__).parse_args(argv)
    print(markdown_table(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
