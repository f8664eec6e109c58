"""The public interface of smmil: lazy, complete, and `smmil.predict` a function and a package at once."""

import subprocess
import sys

import pytest

import smmil
from tests.helpers.train_helpers import make_dataset

CODE = """
import sys
import smmil
assert not {"torch", "numpy", "pydantic"} & set(sys.modules)
assert set(smmil.__all__) <= set(dir(smmil))
FIRST
from smmil import predict
import smmil.predict.settings
assert callable(predict) and smmil.predict is predict and smmil.predict.settings
"""


@pytest.mark.parametrize("first", ["", "import smmil.predict.pipeline"])
def test_predict_is_callable_before_and_after_imports_of_its_modules(first):
    code = CODE.replace("FIRST", first)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_is_there_and_others_are_not():
    assert all(callable(getattr(smmil, name)) for name in smmil.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = smmil.fit
    with pytest.raises(ValueError, match="no-run: not a finished run"):
        smmil.predict("nothing.svs", "no-run", "out", threads=1)


def test_bags_of_a_results_folder_go_through_a_model(tmp_path):
    make_dataset(tmp_path)
    bags = smmil.load_bags(tmp_path, "tiny", split="test")
    assert [bag.bag_id for bag in bags] == [f"bag{i}" for i in range(12, 16)]
    batch = smmil.BagBatch.pack(bags)
    output = smmil.build_model("smap_early", batch.x.shape[1]).eval()(batch)
    assert output.bag_logit.shape == (4,) and output.instance_score.shape == (len(batch.x),)
    assert [bag.bag_id for bag in smmil.load_bags(tmp_path, "tiny", bag_ids=["bag03"])] == ["bag03"]
    with pytest.raises(ValueError, match=r"no usable bags \['nobody'\] among 16"):
        smmil.load_bags(tmp_path, "tiny", bag_ids=["nobody"])
    with pytest.raises(ValueError, match="no shard manifest; extract the features of other first"):
        smmil.load_bags(tmp_path, "other")
