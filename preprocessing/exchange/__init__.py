"""Bags from and to other tools: CLAM and TRIDENT h5, torchmil's npy tree, QuPath GeoJSON.

`FORMATS` is the register; a format module offers `open_source` (read) and `open_target` (write), see
`preprocessing.exchange.model`. `python -m preprocessing.exchange import|export` is the command line. What a format
cannot carry stands in its module and in `docs/howto/exchange.md`.
"""

from preprocessing.exchange import clam, qupath, torchmil, trident
from preprocessing.exchange.model import Format

FORMATS: dict[str, Format] = {
    entry.name: entry for entry in (clam.FORMAT, trident.FORMAT, torchmil.FORMAT, qupath.FORMAT)
}
