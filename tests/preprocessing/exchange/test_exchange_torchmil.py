"""torchmil's own dataset class reads an exported tree: same features, labels and, after its own scaling, same edges."""

import numpy as np
import pytest

from preprocessing.exchange.__main__ import main
from preprocessing.store.bags import read_arrays
from tests.helpers.exchange_files import Store


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_torchmil_itself_reads_our_export(tmp_path):
    from torchmil.datasets import CAMELYON16MILDataset

    store = Store(tmp_path / "ours")
    odd = ["bag1", "bag3"]
    argv = ["export", "--format", "torchmil", *store.arguments(), "--bag-id", *odd]
    assert main([*argv, "--out", str(tmp_path / "tree")]) == 0
    theirs = CAMELYON16MILDataset(str(tmp_path / "tree"), features="resnet18", partition="train", patch_size=256)
    assert theirs.bag_names == ["bag1"]
    ours, bag = read_arrays(store.folder / "instances/store", "bag1"), theirs[0]
    features = read_arrays(store.features_folder / "store", "bag1")["features"]
    np.testing.assert_array_equal(bag["X"].numpy(), features.astype(np.float32))
    assert int(bag["Y"]) == 1
    edges = {tuple(e) for e in bag["adj"].coalesce().indices().T.tolist()}
    assert edges == {(i, j) for i, row in enumerate(ours["neighbors"].tolist()) for j in row if j >= 0}
