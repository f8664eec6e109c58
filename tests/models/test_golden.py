"""Methods, Sm and graphs against numbers that the original authors' code gave (`tests/golden/README.md`)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from smmil.config.methods import METHODS
from smmil.data.batch import BagBatch
from smmil.data.loading import feature_distance_weights
from smmil.models import MILModel, build_model
from smmil.sm.operator import normalise_adjacency, sm_exact, sm_steps
from tests.helpers.models import F64

# no original exists, or its code does not run; `tests/golden/README.md` says which
WITHOUT_FIXTURE = frozenset(
    "abmil_gated abmil_penalty deepgraphsurv max_pool mean_pool smclam smdftd smdsmil t_penalty".split()
)
# sizes, and options that the original has, too
NEUTRAL = frozenset("attention_dim depth dropout hidden key_dim level_dim n_clusters n_heads token_dim width z".split())
NEUTRAL |= {"spectral_norm"}
# the other options that an original needs because the default departs from it by choice
CHOICES: dict[str, dict[str, str]] = {name: {"embed_act": "relu"} for name in ("clam", "clam_mb", "transmil")}
CHOICES |= {"camil": {"code": "released_without_convolution"}}


class Fixture:
    """The arrays of one file, numbers as float64 or int64."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self.arrays = dict(stored)
        self.args = json.loads(str(self.arrays["args"]))
        self.tolerance = float(self.arrays["tolerance"])

    def __getitem__(self, key: str) -> Tensor:
        array = self.arrays[key]
        return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose key begins so, by the rest of the key."""
        return {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}

    def cases(self) -> Iterator[tuple[dict, dict[str, Tensor]]]:
        for number, case in enumerate(self.args["cases"]):
            yield case, self.under(f"case{number}/")

    def batch(self) -> BagBatch:
        return BagBatch(
            x=self["x"],
            offsets=self["offsets"],
            neighbors=self["neighbors"],
            grid=self["grid"],
            coords=self["grid"],
            y=self["y"].double(),
            y_inst=torch.full((len(self["x"]),), -1),
            bag_ids=tuple(map(str, self.arrays["bag_ids"])),
        )

    def model(self, **options) -> MILModel:
        args = self.args
        model = build_model(
            args["method"], args["in_features"], quirks=args["quirks"], **{**args["options"], **options}
        ).double()
        model.load_state_dict(self.under("w/"))
        return model.train(args["mode"] == "train")

    def check(self, actual: Tensor, expected: Tensor, what: str, floor: float = 0.0) -> None:
        """Compare with the largest absolute value of the original as unit, at least `floor`."""
        assert actual.shape == expected.shape, what
        error = float((actual.detach() - expected).abs().max()) / max(float(expected.abs().max()), floor)
        assert error <= self.tolerance, f"{what}: relative error {error:.1e}"


FIXTURES = {path.stem: Fixture(path) for path in sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))}


def fixtures(kind: str) -> list:
    """The fixtures of a kind as test parameters."""
    return [pytest.param(fixture, id=name) for name, fixture in FIXTURES.items() if fixture.args["kind"] == kind]


@pytest.mark.parametrize("fixture", fixtures("model"))
def test_a_method_is_the_original(fixture):
    model, batch = fixture.model(), fixture.batch()
    output = model(batch)
    terms = model.loss(batch, output)
    loss = sum(terms[key] for key in fixture.args.get("terms", terms))
    fixture.check(output.bag_logit, fixture["bag_logit"], "bag logit")
    if "instance_score" in fixture.arrays:
        fixture.check(output.instance_score, fixture["instance_score"], "instance score")
    fixture.check(loss, fixture["loss"], "loss")
    for key, value in fixture.under("loss/").items():
        fixture.check(terms[key], value, f"loss {key}")
    for key, value in fixture.under("after/").items():
        fixture.check(model.state_dict()[key], value, f"{key} after the step")
    if "score_weight" in fixture.arrays:
        loss = loss + (fixture["score_weight"] * output.instance_score).sum()
    check_gradients(fixture, model, loss)


def check_gradients(fixture: Fixture, model: MILModel, loss: Tensor) -> None:
    """Compare all gradients; of the long ones, the fixture has the sum and the first 64 entries."""
    whole, parts = fixture.under("g/"), fixture.under("gpart/")
    # Some gradients are zero in theory and noise in both.
    floor = 1e-4 * max(float(value.abs().max()) for value in (*whole.values(), *parts.values()))
    parameters = dict(model.named_parameters())
    names = [*whole, *parts]
    gradients = torch.autograd.grad(
        loss, [parameters[name] for name in names], allow_unused=True, materialize_grads=True
    )
    for name, gradient in zip(names, gradients, strict=True):
        if name in whole:
            fixture.check(gradient, whole[name], f"gradient of {name}", floor)
        else:
            start = torch.cat([gradient.sum()[None], gradient.flatten()[:64]])
            fixture.check(start, parts[name], f"gradient of {name}", floor)


@pytest.mark.parametrize("fixture", fixtures("sm"))
def test_sm_and_its_gradients_are_the_originals(fixture):
    graph = normalise_adjacency(fixture["neighbors"], dtype=F64)
    fixture.check(graph.dense(), fixture["a_hat"], "adjacency")
    bounds = torch.tensor([0, len(fixture["u"])])
    for case, expected in fixture.cases():
        u, alpha = fixture["u"].requires_grad_(), torch.tensor(case["alpha"], dtype=F64, requires_grad=True)
        exact = case["T"] == "exact"
        out = sm_exact(u, graph, alpha, bounds) if exact else sm_steps(u, graph, alpha, case["T"])
        gradients = torch.autograd.grad((out * fixture["r"]).sum(), [u, alpha])
        for key, actual in zip(("out", "du", "dalpha"), (out, *gradients), strict=True):
            fixture.check(actual, expected[key], f"{key} of {case}")


@pytest.mark.parametrize("fixture", fixtures("graphs"))
def test_graphs_are_the_originals(fixture):
    for case, arrays in fixture.cases():
        weight = feature_distance_weights(arrays["x"], arrays["neighbors"]) if case["distances"] else None
        graph = normalise_adjacency(arrays["neighbors"], weight, dtype=F64)
        fixture.check(graph.dense(), arrays["a_hat"], f"adjacency of {case}")


def test_graphcam_with_the_unit_seed_is_the_originals():
    fixture = FIXTURES["gtp_graphcam"]
    score = fixture.model(seed="one")(fixture.batch()).instance_score
    fixture.check(score, fixture["instance_score_seed_one"], "instance score")


def test_every_method_has_a_fixture_or_is_named_as_one_without():
    covered = {fixture.args["method"] for fixture in FIXTURES.values() if fixture.args["kind"] == "model"}
    assert covered == METHODS.keys() - WITHOUT_FIXTURE


def test_default_arguments_are_the_originals_but_for_the_choices():
    for method in METHODS.keys() - WITHOUT_FIXTURE:
        options = [fixture.args["options"] for fixture in FIXTURES.values() if fixture.args.get("method") == method]
        needed = [{key: value for key, value in item.items() if key not in NEUTRAL} for item in options]
        assert CHOICES.get(method, {}) in needed, method
