"""Ways to damage a file, and a snapshot of a folder."""

from pathlib import Path


def flip(path: Path, share: float = 0.5) -> None:
    """Change one bit at this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Remove the second half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    """Remove the content."""
    path.write_bytes(b"")


WAYS = {"one bit": flip, "cut": cut, "empty": empty}


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder by name, without logs, which hold wall times."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "log.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
