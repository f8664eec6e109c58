"""SETMIL: the lattice, neighbourhoods, distance buckets, translation; all else by the original's numbers."""

import dataclasses
import math

import torch

from smmil.data.batch import pack
from smmil.models import build_model
from smmil.models.setmil import distance_buckets, lattice
from tests.helpers.graphs import make_bag
from tests.helpers.models import F64, P, assert_same

SPARSE = [(4, 7), (4, 9), (5, 8), (9, 7), (4, 7)]
FULL = [(r, c) for r in range(3) for c in range(4)]


def build(**options):
    torch.manual_seed(0)
    model = build_model("setmil", P, **{"depth": 2, **options}).double().eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.bias)
    return model


def batch_of(*grids: list[tuple[int, int]]):
    bags = [
        dataclasses.replace(make_bag(len(grid), seed, features=P), grid=torch.tensor(grid))
        for seed, grid in enumerate(grids)
    ]
    batch = pack(bags)
    return dataclasses.replace(batch, x=batch.x.double())


def test_the_lattice_starts_at_zero_merges_collisions_and_numbers_cells_row_by_row():
    cells = lattice(batch_of(SPARSE, [(100, -3)]))
    assert cells.place.tolist() == [[0, 0], [0, 2], [1, 1], [5, 0], [0, 0]]
    assert cells.number.tolist() == [0, 2, 4, 15, 0]
    assert cells.of_instance.tolist() == [0, 1, 2, 3, 0, 4] and cells.bounds == [0, 4, 5]


def test_neighbourhoods_equal_a_dense_unfold_and_never_leave_the_bag():
    model, batch = build(), batch_of(SPARSE, FULL, [(0, 0)])
    cells = lattice(batch)
    e = torch.randn(len(cells.keys), 128, dtype=F64)
    for level in model.levels:
        actual = level.unfold(e, cells).view(len(e), level.K**2, 128)
        for start, stop in zip(cells.bounds[:-1], cells.bounds[1:], strict=True):
            place = cells.place[start:stop]
            height, width = (place.amax(0) + 1).tolist()
            image = torch.zeros(128, height, width, dtype=F64)
            image[:, place[:, 0], place[:, 1]] = e[start:stop].T
            columns = torch.nn.functional.unfold(image[None], level.K, padding=level.K // 2)[0]
            columns = columns.view(128, level.K**2, height, width)[:, :, place[:, 0], place[:, 1]]
            torch.testing.assert_close(actual[start:stop], columns.permute(2, 1, 0))


def test_distance_buckets_are_rounded_distances():
    place = torch.tensor([(r, c) for r in range(7) for c in range(7)])
    bucket = distance_buckets(place, 0, 50)
    assert (bucket[0] == 4).all() and (bucket[:, 0] == 4).all()
    expected = {0: 0, 1: 1, 2: 2, 3: 2}
    for i in range(49):
        for j in range(49):
            distance = round(math.dist(place[i].tolist(), place[j].tolist()))
            assert bucket[i + 1, j + 1] == expected.get(distance, 3)
    rows = [distance_buckets(place, start, start + 9) for start in range(0, 50, 9)]
    assert torch.equal(torch.cat(rows), bucket)


def test_translation_changes_nothing_and_scores_are_read_back_by_coordinate():
    model, batch = build(), batch_of(SPARSE, FULL)
    output = model(batch)
    moved = model(dataclasses.replace(batch, grid=batch.grid + torch.tensor([17, -40])))
    assert_same(output, moved, rtol=0, atol=0)
    assert output.instance_score[0] == output.instance_score[4]
    assert 0 < output.instance_score[5:].sum() < 1


def test_collisions_are_summed():
    model, batch = build(), batch_of([(0, 0), (0, 1), (0, 0)])
    e = model.token(model.embed(batch.x))
    expected = model(batch).bag_logit
    model.token.register_forward_hook(lambda *_: torch.stack([e[0] + e[2], e[1]]))
    torch.testing.assert_close(model(batch_of([(0, 0), (0, 1)])).bag_logit, expected)


def test_neighbourhoods_made_again_in_the_backward_pass_give_the_same_gradients(monkeypatch):
    gradients = []
    for keep in (2**25, 1):
        monkeypatch.setattr("smmil.models.setmil.KEEP", keep)
        model, batch = build(depth=1), batch_of(FULL)
        model(batch).bag_logit.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_every_linear_layer_but_the_embedding_begins_as_in_the_original():
    model = build_model("setmil", 30, depth=2)
    inside = {id(layer) for layer in model.embed.modules()}
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and id(layer) not in inside]
    # reduction, three levels of four, two blocks of four, classifier
    assert len(layers) == 1 + 3 * 4 + 2 * 4 + 1
    for layer in layers:
        assert layer.bias is None or not layer.bias.any()
        spread = 0.02 * 5 / (2 * layer.weight.numel()) ** 0.5
        assert abs(layer.weight.std(correction=0) - 0.02) < spread + 1e-5
