"""Reading a bag of features, 10,000 x 2048 float16: our store against npy, Zarr's own reader and HDF5. Warm cache.

In: nothing (a bag is written to a temporary folder). Out: a table, or with `--json` a list of {name, ours, peer, ratio,
target, unit}; milliseconds of CPU time, system time included, which copying from the page cache mostly is. The arrays
are compared before anything is timed. npy is the limit: parity, 0.9 with the noise of a machine, is the target there.
Zarr reads the very files of our store; HDF5 is one contiguous array, the layout it reads fastest (no target), and
chunks of 32 rows, as CLAM writes.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import Case, Different, Step, make_parser, run, scale_of
from preprocessing.common.cli import guard

N, P = 10_000, 2048
PARITY = 0.9
BAG = "bag"
Array = npt.NDArray[Any]


def write_all(folder: Path, n: int) -> None:
    """Write the same features in every layout."""
    from preprocessing.store.bags import FeatureAttrs, write_bag

    features = np.random.default_rng(0).random((n, P), np.float32).astype(np.float16)
    write_bag(folder / "store", BAG, {"features": features}, FeatureAttrs(coords_hash="0" * 64))
    np.save(folder / "bag.npy", features)
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(folder / "bag.h5", "w") as file:
            file["features"] = features
            file.create_dataset("chunked", data=features, chunks=(min(32, n), P))


def read_ours(folder: Path, via: Any = "path") -> Array:
    """Read a bag as training does."""
    from preprocessing.store.bags import read_arrays

    return read_arrays(folder / "store", BAG, ["features"], via=via)["features"]


def read_npy(folder: Path) -> Array:
    """Read one npy file."""
    array: Array = np.load(folder / "bag.npy")
    return array


def read_zarr(folder: Path) -> Array:
    """Read the files of our store through Zarr's public interface."""
    import zarr

    return np.asarray(zarr.open_array(folder / "store" / BAG / "features", mode="r")[...])


def read_hdf5(folder: Path, name: str = "features") -> Array:
    """Read a whole array of one HDF5 file."""
    import h5py

    with h5py.File(folder / "bag.h5", "r") as file:
        return np.asarray(file[name][...])


def same(ours: Array, theirs: Array) -> None:
    """Raise `Different` unless type, shape and every bit agree."""
    if ours.dtype != theirs.dtype or not np.array_equal(ours.view(np.uint16), theirs.view(np.uint16)):
        raise Different(
            f"bag read as {ours.dtype}{ours.shape}, the peer has {theirs.dtype}{theirs.shape} or other bits"
        )


def cases(folder: Path, n: int) -> list[Case]:
    """List one case per peer."""
    peers: list[tuple[str, str, Callable[[Path], Array], float | None]] = [
        ("npy", "np.load of npy", read_npy, PARITY),
        ("zarr", "Zarr on our files", read_zarr, 1.0),
    ]
    if importlib.util.find_spec("h5py"):
        peers.append(("hdf5/contiguous", "HDF5, contiguous", read_hdf5, None))
        peers.append(("hdf5/chunked", "HDF5, 32 rows a chunk", partial(read_hdf5, name="chunked"), 1.5))

    def sides(read: Callable[[Path], Array]) -> tuple[Step, Step]:
        return partial(read_ours, folder), partial(read, folder)

    name = f"bag {n} x {P} float16 against"
    return [Case(key, f"{name} {title}", partial(sides, read), least, same) for key, title, read, least in peers]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = make_parser("store", __doc__).parse_args(argv)
    n = max(2, round(N * scale_of(arguments)))
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        write_all(Path(folder), n)
        return run(cases(Path(folder), n), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
