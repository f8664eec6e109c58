"""New slides or scans with finished runs: label and probability, instance scores, maps, GeoJSON for QuPath.

    python -m smmil.predict IMAGE ... --model RUN ... --out DIR

For the files that it writes see docs/howto/exchange.md, "New slides and scans". An image that is refused has its row in
`predictions.csv` with the reason, and the others go on; the exit code is then 2. Not for clinical use.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard, program

# of the images that a warning is printed with
MAX_NAMES = 5


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predict images; see the top of this file."""
    parser = argparse.ArgumentParser(prog=program("smmil.predict"), description=(__doc__ or "").splitlines()[0])
    image = "slide, folder of one CT series (FOLDER#3: SeriesNumber 3), .dcm; folder of these, or CSV with column image"
    model = "finished runs, or the folder of a method: all its chosen runs; several give their mean"
    parser.add_argument("image", nargs="+", type=Path, help=image)
    parser.add_argument("--model", required=True, nargs="+", type=Path, help=model)
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--mpp", type=float, help="um per px at level 0, where the file has none or a wrong one")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of the encoder's weights")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads for decoding and torch")
    parser.add_argument("--batch-size", type=int, default=64, help="tiles per encoder step")
    parser.add_argument("--bag-id", help="name of a single image (default: of the file or folder)")
    parser.add_argument(
        "--map", choices=("score", "signed", "signed_sm"), default="score", help="scores in the picture"
    )
    parser.add_argument("--keep-features", action="store_true", help="for a quick second call")
    group = parser.add_argument_group("only where the run's dataset is not beside it, or did not record it")
    group.add_argument("--dataset-folder", type=Path, help="results/D of the run's dataset")
    group.add_argument("--options", help='how it was cut, as in the config: {"wsi": {...}} or {"ct": {...}}')
    group.add_argument("--dtype", choices=("float16", "float32"), help="of its stored features")
    group.add_argument("--precision", choices=("float32", "bf16"), help="of its encoder")
    group.add_argument("--any-resolution", action="store_true", help="accept a resolution the run has never seen")
    args = parser.parse_args(argv)
    from preprocessing.bags.rows import printable
    from preprocessing.common.options import parse_instance_options
    from smmil.predict.batch import TABLE, find_images, predict_images
    from smmil.predict.pipeline import Preparation
    from smmil.predict.settings import load_model
    from smmil.predictions.scoring import runs_in

    options = None
    if args.options is not None:
        parse_instance_options(args.options)
        options = json.loads(args.options)
    settings = Preparation(
        args.device,
        args.threads,
        args.batch_size,
        map=args.map,
        options=options,
        any_resolution=args.any_resolution,
        keep_features=args.keep_features,
    )
    images = find_images(args.image, bag_id=args.bag_id, mpp=args.mpp)
    models = [
        load_model(run, args.weights, args.dataset_folder, args.dtype, args.precision) for run in runs_in(args.model)
    ]
    single = len(images) == 1 and images[0].path == args.image[0]
    rows = predict_images(images, models, args.out, settings, flat=single)
    warned: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.image.bag_id)
    for warning, names in warned.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        print(f"{'' if single else ', '.join(names[:MAX_NAMES]) + more + ': '}warning: {warning}")
    wrong = [row for row in rows if row.state in ("refused", "failed")]
    for row in wrong:
        path = printable(str(row.image.path))
        print(f"error: {'' if path in row.reason else path + ': '}{row.reason}", file=sys.stderr)
    if not single:
        states = ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in rows).items())
        print(f"{args.out / TABLE}: {len(rows)} images, {states}")
    return 2 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
