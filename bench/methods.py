"""Training steps of the methods against torchmil 1.0.2: forward, all losses, backward; no optimiser, which is the same.

Ours takes packed bags and neighbour tables, the peer padded bags, COO adjacency and mask, all made outside the timed
region; our normalisation of the graph is part of our step. Shapes and the peer's faults: `bench/bags.py`,
`bench/peers.py`. SETMIL's peer asks for tens of GiB and is left out.

`--memory` instead runs one step of every method on one bag of 20,000 x 2048 in a new process and prints its peak
resident memory in GiB, which has to stay below 8.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from bench.timing import Case, Row, Step, make_parser, run, show
from preprocessing.common.cli import guard

if TYPE_CHECKING:
    from smmil.data.batch import BagBatch
    from smmil.models import MILModel

FEATURES = 512
ONE_BAG, WIDE_FEATURES = 10_000, 2048
# The peer has no spectral normalisation by default.
OPTIONS: dict[str, dict[str, bool]] = {method: {"spectral_norm": False} for method in ("smap_early", "smtap")}
RAGGED = ("abmil", "dsmil", "clam", "dftd", "t_ap", "smtap")
# Smallest ratio to reach on RSNA-like bags; None = ours has to run.
GLOBAL: dict[str, float | None] = {"transmil": 30.0, "camil": 30.0, "setmil": None, "gtp": 5.0}
LIMIT_GIB, MEMORY_BAG = 8.0, 20_000


def make(method: str, batch: "Callable[[], BagBatch]", **options: Any) -> tuple[Step, Step | None]:
    """Prepare one training step of ours and of the peer on the same bags."""
    import torch

    from bench.bags import pad
    from bench.peers import PEERS, peer_loss
    from smmil.models import build_model

    bags = batch()
    features = bags.x.shape[1]
    model = build_model(method, features, **{**OPTIONS.get(method, {}), **options}).train()
    if method not in PEERS:
        return partial(step, model, bags), None
    peer, loss = peer_loss(method, model, features)
    padded = pad(bags)

    def theirs() -> None:
        peer.zero_grad()
        torch.autograd.backward(loss(padded))

    return partial(step, model, bags), theirs


def step(model: "MILModel", bags: "BagBatch") -> None:
    """Run forward, losses and backward."""
    import torch

    model.zero_grad()
    torch.autograd.backward(list(model.loss(bags, model(bags)).values()))


def cases(scale: float) -> list[Case]:
    """List the cases of the table; `scale` is the share of the large bag's instances and of the bags of a batch."""
    from bench.bags import fill, make_batch, sizes_of

    large, n_bags = max(2, round(ONE_BAG * scale)), max(2, round(32 * scale))
    sizes = {shape: sizes_of(shape, n_bags) for shape in ("panda", "rsna")}
    batches = {shape: partial(make_batch, sizes[shape], FEATURES, chain=shape == "rsna") for shape in sizes}
    titles = {shape: f"{shape.upper()}-like, {n_bags} bags x {FEATURES}" for shape in sizes}
    work = partial(make, "smap_early", partial(make_batch, [large], WIDE_FEATURES))
    name = f"smap_early, one bag, {large} x {WIDE_FEATURES}, alpha trainable"
    out = [Case("smap_early/one", name, work, 15.0)]
    for shape, target in (("panda", 5.0), ("rsna", 2.0)):
        for kind, alpha in (("trainable", "trainable"), ("fixed", 0.5)):
            work = partial(make, "smap_early", batches[shape], alpha=alpha)
            out.append(Case(f"smap_early/{shape}_{kind}", f"smap_early, {titles[shape]}, alpha {kind}", work, target))
    targets = {(method, shape): 1 / fill(sizes[shape]) for method in RAGGED for shape in sizes}
    for (method, shape), least in {**targets, **{(method, "rsna"): least for method, least in GLOBAL.items()}}.items():
        work = partial(make, method, batches[shape])
        out.append(Case(f"{method}/{shape}", f"{method}, {titles[shape]}", work, least))
    return out


def memory_step(method: str, n: int) -> float:
    """Run one training step on one bag of n x 2048; return the peak memory of this process in GiB."""
    import torch

    from bench.bags import make_batch
    from smmil.compute.devices import peak_memory
    from smmil.models import build_model

    torch.set_num_threads(1)
    step(build_model(method, WIDE_FEATURES).train(), make_batch([n], WIDE_FEATURES))
    return float(peak_memory(torch.device("cpu"))["memory_mib"]) / 2**10


def memory_row(method: str, scale: float) -> Row:
    """Run `memory_step` in a new process."""
    n, gib = max(2, round(MEMORY_BAG * scale)), None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            gib = pool.submit(memory_step, method, n).result()
        except RuntimeError as error:
            # either the system killed the process or torch ran out of memory
            print(f"{method}: {error}")
    return Row(f"{method}, one bag, {n} x {WIDE_FEATURES}, memory", gib, None, LIMIT_GIB, "GiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = make_parser("methods", __doc__)
    parser.add_argument("--memory", action="store_true", help="memory of one step on one large bag; --cases: methods")
    arguments = parser.parse_args(argv)
    if arguments.memory:
        from smmil.config.methods import METHODS, known_methods

        methods = list(METHODS) if arguments.cases is None else arguments.cases.split(",")
        known_methods(methods)
        show([memory_row(method, arguments.scale) for method in methods])
    else:
        run(cases(arguments.scale), arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
