"""Whatever a rank computes with is on its device, on every mesh. No GPU is asked for: tensors here have no values."""

from unittest.mock import Mock

import pytest
import torch
from afar import AFAR, Afar, let_modules_go_afar
from harness import STATE, make_config

from hvdlm import checkpoint
from hvdlm.checkpoint.parts import Kept, shares_of
from hvdlm.data.corpora import open_corpora
from hvdlm.models import Vocabulary
from hvdlm.models.transformer import TransformerConfig
from hvdlm.optim import optimizers
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.imagined import imagined_axes
from hvdlm.parallel.mesh import Mesh
from hvdlm.parallel.sharing import share
from hvdlm.train import step
from hvdlm.train.replicas import tensor_digests
from hvdlm.train.step import GradientLearner
from hvdlm.train.validation import Validation
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld

MODEL = "model={family: transformer, layers: 2, width: 16, heads: 4, kv_heads: 2, activation: swiglu}"
BATCH = "train.global_batch=4", "train.micro_batch=2", "train.eval_tokens=60", "data.seq_len=7"
CASES = [
    ("sync=allreduce",),
    ("parallel.zero=1",),
    ("parallel.zero=1", "sync=allreduce", "ema.decay=0.9"),
    ("parallel={pipeline: 2}", "model.dropout=0.1"),
    ("parallel={pipeline: 2}", "model.tie_embeddings=false", "train.precision=bf16"),
    ("parallel={pipeline: 2}", "sync=allreduce", "ema.decay=0.9", "train.precision=fp16"),
    ("parallel={pipeline: 2}", "task=mlm", "model.causal=false", "model.activation_checkpointing=true"),
    ("parallel={pipeline: 2, schedule: zero_bubble}", "guard.spike=skip"),
    ("parallel={pipeline: 2, schedule: interleaved, chunks: 2}", "model.layers=4", "freeze=[embed]"),
    ("parallel={tensor: 2}", "model.positions={kind: alibi}", "optim.name=lion"),
    ("parallel={tensor: 2, sequence: true}", "model.positions={kind: rotary}", "model.qk_norm=true"),
    ("parallel={tensor: 2, tensor_blocks: 2}", "ema.decay=0.9", "optim.name=sgd"),
    ("parallel={pipeline: 2, tensor: 2, sequence: true, zero: 1}", "sync=allreduce", "ema.decay=0.9"),
]


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


@pytest.fixture
def learner_of(data_dir, tmp_path):
    """(learner, its corpora) of one rank of a mesh; the other ranks are made up."""

    def learner(rank, *overrides):
        config = make_config(data_dir, tmp_path / "run", MODEL, "sync=tree", "optim.clip=0.5", *BATCH, *overrides)
        parallel, corpora = config.parallel, open_corpora(config.data)
        mesh = Mesh(parallel.pipeline, 2 if parallel.zero else 1, parallel.tensor)
        axes = imagined_axes(mesh, rank % mesh.size) if mesh.size > 1 else axes_of(SerialWorld(), parallel)
        made = GradientLearner(config, corpora.train_source(), corpora.manifest, axes, Place(0, 1, 1))
        return made, corpora

    return learner


def kept_by(learner):
    """All tensors that it computes with, by a name."""
    kept = dict(learner.model.named_parameters()) | dict(learner.model.named_buffers())
    kept["tied"] = learner.model.tied_weight
    for number, state in enumerate(learner.optimizer.state.values()):
        kept |= {f"optimizer/{number}/{name}": value for name, value in state.items() if name != "step"}
    if learner.ema is not None:
        kept |= {f"ema/{name}": mean for name, mean in learner.ema.state().items()}
    return {name: tensor for name, tensor in kept.items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize(
    ("rank", "overrides"),
    [(rank, case) for case in CASES for rank in ([0, -1] if "pipeline" in case[0] else [-1])],
)
def test_a_run_computes_on_its_device(learner_of, monkeypatch, tmp_path, overrides, rank):
    """Steps, a validation, digests and a checkpoint; and what it goes on with from one that a CPU has written."""
    of_all = [word for word in overrides if not word.startswith("parallel")]
    alone, _ = learner_of(0, *of_all)
    alone.run(0, 1)
    tensors, scalars = alone.collect()
    state = {**STATE, "engine": scalars}
    path = checkpoint.save(tmp_path / "cpu", 1, alone.model, alone.optimizer, state, tensors)
    alone.close()
    let_modules_go_afar(monkeypatch)
    monkeypatch.setattr(step, "prepare_device", lambda *_, **__: AFAR)
    monkeypatch.setattr(optimizers, "fused", lambda *_: {})  # torch has no such kernels there
    with Afar():
        learner, corpora = learner_of(rank, *overrides)
        learner.examples._is_proven = True  # there are no losses to add up
        learner.agree()
        results = learner.run(0, 1)
        assert {result.sums.device for result in results} == {result.grad_norm.device for result in results} == {AFAR}
        validation = Validation(learner.config, learner, corpora)
        with learner.evaluated():
            validation.run(1, Mock())
        assert all(isinstance(number, int) for number in tensor_digests(learner.model))
        kept, pieces = Kept(), learner.pieces(learner.collect()[0])[0]
        kept.take(shares_of(pieces))
        assert {share.tensor.device.type for share in kept.shares} == {"cpu"}
        assert [name for name, tensor in kept_by(learner).items() if tensor.device != AFAR] == []
        assert learner.restore(path) == 1
        learner.agree()
        learner.run(1, 2)
        assert [name for name, tensor in kept_by(learner).items() if tensor.device != AFAR] == []
        learner.close()
