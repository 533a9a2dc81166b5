"""The `sync` key: by name or with options; what does not go together is said before anything starts."""

import pytest
import torch
from harness import make_config
from torch import nn

from hvdlm.errors import UserError
from hvdlm.sync import SYNCS, build_sync, preferred_world
from hvdlm.sync.allreduce import AllreduceConfig
from hvdlm.sync.horovod import HorovodConfig
from hvdlm.world.serial import SerialWorld


def config(tmp_path, *overrides):
    return make_config(tmp_path / "data", tmp_path / "run", *overrides)


@pytest.mark.parametrize("kind", [*SYNCS, "auto"])
def test_a_name_stands_for_its_defaults(tmp_path, kind):
    assert config(tmp_path, f"sync={kind}").sync == config(tmp_path, f"sync.kind={kind}").sync


def test_options_reach_their_section(tmp_path):
    sync = config(tmp_path, "sync={kind: horovod, compression: fp16, groups: 2, fusion_mb: 8, cycle_ms: 2.5}").sync
    assert sync == HorovodConfig(compression="fp16", groups=2, fusion_mb=8.0, cycle_ms=2.5)
    assert sync.environment == {"HOROVOD_FUSION_THRESHOLD": "8388608", "HOROVOD_CYCLE_TIME": "2.5"}
    assert config(tmp_path).sync.environment == {}
    compressed = config(tmp_path, "sync={kind: allreduce, compress: {name: topk, density: 0.05}}").sync
    assert isinstance(compressed, AllreduceConfig)
    assert compressed.compress.density == 0.05


def test_the_world_follows_the_sync(tmp_path):
    assert preferred_world(config(tmp_path).sync) == "horovod"
    assert preferred_world(config(tmp_path, "sync=horovod").sync) == "horovod"
    assert preferred_world(config(tmp_path, "sync=async").sync) == "mpi"
    assert preferred_world(config(tmp_path, "sync=tree").sync) == ("horovod" if torch.cuda.is_available() else "mpi")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sync=ring"], "sync: must be auto, horovod, .* or async, got 'ring'"),
        (["sync={kind: horovod, op: sum, predivide: 2.0}"], "predivide is of op: average, not sum"),
        (["sync={kind: horovod, predivide: 2.0, groups: 2}"], "ignores predivide in groups"),
        (["sync={kind: horovod, op: adasum}"], "set optim.clip: 0"),
        (["sync={kind: horovod, op: adasum}", "optim.clip=0", "guard.nonfinite=skip"], "cannot leave a step out"),
        (["sync=local_sgd", "train.precision=fp16"], "use bf16"),
        (["sync=diloco", "ema.decay=0.9"], "ema needs equal replicas"),
        (["data.order=contiguous"], "model.family: transformer has none"),
        (["train.steps=null"], "give one of steps, tokens, epochs"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        config(tmp_path, *overrides)


def test_a_bf16_parameter_is_refused_by_every_sync(tmp_path):
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    for kind in SYNCS:
        with pytest.raises(UserError, match="parameter weight is torch.bfloat16; keep float32"):
            build_sync(
                config(tmp_path, f"sync={kind}").sync, model, torch.optim.SGD(model.parameters(), 1), SerialWorld()
            )
