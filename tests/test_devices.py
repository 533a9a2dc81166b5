"""Whatever a rank computes with is on its device, on every mesh. No GPU is asked for: tensors here have no values."""

import pytest
import torch
from harness import make_config

from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.models import Vocabulary
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.imagined import imagined_axes
from hvdlm.parallel.mesh import Mesh
from hvdlm.parallel.sharing import share


@pytest.mark.parametrize("change", [{"device": "meta"}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize(("rank", "mesh"), [(0, Mesh(2)), (1, Mesh(2)), (3, Mesh(2, 1, 2))], ids=str)
def test_a_tied_weight_goes_where_the_model_goes(mesh, rank, change):
    model = TransformerConfig(layers=2, heads=2, width=8).build(Vocabulary(20, 0))
    parallel = ParallelConfig(pipeline=mesh.pipeline, tensor=mesh.tensor)
    share(model, imagined_axes(mesh, rank), parallel, model.layer_costs(8))
    before = model.tied_weight
    model.to(**change)
    tied = model.tied_weight
    assert tied is (model.embed if mesh.place(rank).pipeline == 0 else model.head).weight
    for name, value in change.items():
        assert str(getattr(tied, name)) == str(value)
    assert tied.is_leaf
    assert tied.requires_grad
    assert tied.shape == before.shape
