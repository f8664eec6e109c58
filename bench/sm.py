"""Compare Sm with torchmil: T = 10 steps on N x 512, forward, and forward + backward with a trainable alpha.

The graph is a square lattice with eight neighbours; torchmil gets it as float32 COO (1,N,N) (the float64 adjacency of
its own dataset makes its Sm raise). Graphs are prepared outside the timed region on both sides. `SMMIL_NATIVE=0` in
the environment measures our torch path, which has to reach 3x.
"""

from collections.abc import Sequence
from functools import partial

from bench.timing import Case, Step, make_parser, run
from preprocessing.common.cli import guard

# Instances -> smallest ratio of the forward pass to reach.
SIZES = {1_000: 5.0, 10_000: 10.0, 50_000: 10.0}
WIDTH, STEPS = 512, 10
BOTH = 5.0


def make(n: int, width: int, *, backward: bool) -> tuple[Step, Step]:
    """Prepare both sides on the same matrix (n,width), graph and alpha; `backward` adds the gradients of both."""
    import torch
    from torchmil.nn import Sm as PeerSm

    from bench.bags import coo, lattice_table
    from smmil.sm.operator import Sm, normalise_adjacency

    graph, whole = normalise_adjacency(lattice_table(n)), torch.tensor([0, n])
    adjacency = coo([graph], n)
    generator = torch.Generator().manual_seed(0)
    u, g = (torch.randn(n, width, generator=generator) for _ in range(2))
    u.requires_grad_(backward)
    sm, peer = Sm("trainable", STEPS), PeerSm(alpha="trainable", num_steps=STEPS)

    def ours() -> object:
        with torch.set_grad_enabled(backward):
            out = sm(u, graph, whole)
        return torch.autograd.grad(out, [u, *sm.parameters()], g) if backward else out

    def theirs() -> object:
        with torch.set_grad_enabled(backward):
            out = peer(u[None], adjacency)[0]
        return torch.autograd.grad(out, [u, *peer.parameters()], g) if backward else out

    return ours, theirs


def cases(scale: float) -> list[Case]:
    """List all sizes, forward and forward + backward."""
    out = []
    for full, forward in SIZES.items():
        n = max(2, round(full * scale))
        for kind, title, target in (("forward", "forward", forward), ("both", "forward + backward", BOTH)):
            work = partial(make, n, WIDTH, backward=kind == "both")
            out.append(Case(f"{full // 1000}k/{kind}", f"Sm {title}, {n} x {WIDTH}", work, target))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = make_parser("sm", __doc__).parse_args(argv)
    run(cases(arguments.scale), arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
