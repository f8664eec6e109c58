"""One new slide or scan with one finished run: label and probability, instance scores, a map, GeoJSON for QuPath.

    python -m smmil.predict SLIDE --model results/D/runs/E/M/split1_lr0.0001 --out DIR

SLIDE may be a slide file, a folder with one CT series (`FOLDER#3`: the series with SeriesNumber 3) or one DICOM slide,
or a .dcm file. It becomes a bag store in `DIR/bag` through the same stages as every dataset, cut and encoded exactly as
the run's dataset was (`smmil.predict.settings`), and is scored as by `smmil.score`. A second call with another run of
the same dataset finds the bag finished; `DIR/bag` may be deleted at any time.

| file | content |
|---|---|
| `prediction.json` | probability, label at 0.5, model, encoder, settings and where they come from, warnings |
| `instances.csv` | one line per tile or slice: place, score, rank, signed scores (`smmil.predict.outputs`) |
| `heatmap.png`, `.pdf` | scores over the thumbnail or the slices; `--map signed`, `signed_sm`: signed ones |
| `tiles.geojson` | slides: tiles with scores, to drop on QuPath |

Warnings, e.g. of a slide without colour, are printed, too.

A bag without tissue is an outcome: `state` is `empty`, there are no other files. Another encoder, other weights,
another tile size or resolution than the run's are refused. Not for clinical use.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.predict", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "image", type=Path, help="slide file, folder of one CT series (FOLDER#3: SeriesNumber 3), or .dcm"
    )
    parser.add_argument("--model", required=True, type=Path, help="directory of a finished run")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--mpp", type=float, help="um per px at level 0, where the file has none or a wrong one")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of the encoder's weights")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads for decoding and torch")
    parser.add_argument("--batch-size", type=int, default=64, help="tiles per encoder step")
    parser.add_argument("--bag-id", help="name of the bag (default: of the file or folder)")
    parser.add_argument(
        "--map", choices=("score", "signed", "signed_sm"), default="score", help="scores in the picture"
    )
    group = parser.add_argument_group("only where the run's dataset is not beside it, or did not record it")
    group.add_argument("--dataset-folder", type=Path, help="results/D of the run's dataset")
    group.add_argument("--options", help='how it was cut, as in the config: {"wsi": {...}} or {"ct": {...}}')
    group.add_argument("--dtype", choices=("float16", "float32"), help="of its stored features")
    group.add_argument("--precision", choices=("float32", "bf16"), help="of its encoder")
    group.add_argument("--any-resolution", action="store_true", help="accept a resolution the run has never seen")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predict one image; see the top of this file."""
    arguments = vars(build_parser().parse_args(argv))
    from preprocessing.common.options import parse_instance_options
    from smmil.predict.pipeline import predict

    if arguments["options"] is not None:
        parse_instance_options(arguments["options"])
        arguments["options"] = json.loads(arguments["options"])
    prediction = predict(**arguments)
    for warning in prediction.warnings:
        print(f"warning: {warning}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
