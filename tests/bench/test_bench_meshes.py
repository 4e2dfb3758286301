"""Steps on several meshes beside one device: what is counted, and what is refused."""

import msgspec
import numpy as np
import pytest
import tiny

from jaxllm.bench import meshes
from jaxllm.config import ExpertsConfig, MLPConfig


def test_choices_that_moved_are_counted_once(monkeypatch):
    """Of eight choices two went from the first expert to the last."""
    runs = iter([([1.0], np.array([[[4.0, 2.0, 2.0]]])), ([1.5], np.array([[[2.0, 2.0, 4.0]]]))])
    monkeypatch.setattr(meshes, "_run", lambda *_: next(runs))
    result = meshes.measure(tiny.experiment(), ("expert=2",), 1)
    (row,) = result["meshes"]
    assert (row["choices"], row["moved"], row["difference"]) == (8, 2, 0.5)
    assert meshes.text(result).splitlines()[-1].split() == ["expert=2", "5.0e-01", "8", "2"]


def test_choices_are_the_loads_of_the_layers_that_have_experts():
    """Four tokens of two choices each make eight choices of a layer, two of each expert where all are alike."""
    experts = ExpertsConfig(num_experts=4, experts_per_token=2)
    layer = msgspec.structs.replace(tiny.MODEL.default_block, mlp=MLPConfig(d_ff=48, experts=experts))
    model = msgspec.structs.replace(tiny.MODEL, num_layers=2, prefix=(tiny.MODEL.default_block,), period=(layer,))
    choices = meshes.choices(model, np.array([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.5, 1.5, 2.0]]]), 4)
    np.testing.assert_array_equal(choices, [[[2, 2, 2, 2]], [[0, 1, 3, 4]]])
    assert meshes.choices(tiny.MODEL, np.zeros((2, 0)), 4).size == 0


@pytest.mark.parametrize(
    ("mesh", "said"),
    [("experts=2", "experts=2 is no axis"), ("fsdp=0", "fsdp=0 is no axis"), ("expert=16", "JAX_NUM_CPU_DEVICES=16")],
)
def test_what_is_no_mesh_is_refused_before_anything_runs(monkeypatch, mesh, said):
    monkeypatch.setattr(meshes, "assemble", None)
    with pytest.raises(ValueError, match=said):
        meshes.measure(tiny.experiment(), (mesh,))
