"""Ways to damage a file, and the states of a tiny training to damage it in."""

from pathlib import Path


def flip(path: Path, share: float = 0.5) -> None:
    """Changes one bit, at this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Loses the second half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    """Keeps the name only."""
    path.write_bytes(b"")


WAYS = {"one bit": flip, "cut": cut, "empty": empty}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by name, but logs (they hold wall times)."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "log.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
