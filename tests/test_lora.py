"""Adapters, frozen layers, rates by layer: what is not trained stays bit for bit, and is neither sent nor optimized."""

import re

import pytest
import torch
from harness import make_config, run_training
from saved import tensors_in

from hvdlm.checkpoint import read_weights, resolve
from hvdlm.errors import UserError
from hvdlm.inference.hf_files import weights_of
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.lora import LoraConfig, add_lora, merged
from hvdlm.models.transformer import TransformerConfig
from hvdlm.optim import OptimConfig, build_optimizer
from hvdlm.optim.groups import parameter_groups
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import build_task
from hvdlm.train.setup import build_learner
from hvdlm.train.trained import model_of
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

LORA = "lora={rank: 2, alpha: 8}"
SHORT = ("train.steps=4", "train.eval_every=4", "checkpoint.every=2")


def weights(run, step):
    return read_weights(run / "checkpoints" / f"step_{step:08d}")


def is_adapter(name):
    return name.endswith(("lora_a", "lora_b"))


def test_the_base_stays_bit_for_bit_and_only_adapters_are_in_the_optimizer(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "base", *SHORT)
    run_training(data_dir, tmp_path / "run", *SHORT, LORA, f"init.from={tmp_path / 'base'}", "optim.lr=1e-2")
    base, after = weights(tmp_path / "base", 4), weights(tmp_path / "run", 4)
    assert {name for name in after if not is_adapter(name)} == base.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())
    assert {name.rpartition(".")[0] for name in after if is_adapter(name)} == {
        f"blocks.{number}.attention.{layer}" for number in (0, 1) for layer in ("qkv", "out")
    }
    assert all(bool(after[name].any()) for name in after if is_adapter(name))
    moments = tensors_in(tmp_path / "run" / "checkpoints" / "step_00000004", "optimizer/")
    assert {name.rpartition("/")[0] for name in moments} == {name for name in after if is_adapter(name)}


def test_a_run_with_adapters_resumes_bit_for_bit(data_dir, tmp_path):
    for run, steps in (("whole", (4,)), ("parts", (2, 4))):
        for step in steps:
            words = ("train.eval_every=4", "checkpoint.every=2", "optim.schedule=constant", f"train.steps={step}")
            run_training(data_dir, tmp_path / run, *words, LORA, "ema.decay=0.9", "freeze=['blocks.0.*lora']")
    whole, parts = (weights(tmp_path / run, 4) for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not whole["blocks.0.attention.qkv.lora_b"].any()  # frozen too
    assert whole["blocks.1.attention.qkv.lora_b"].any()


def test_merged_logits_are_those_of_the_adapters(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", *SHORT, "lora={rank: 3, alpha: 30, targets: [blocks]}", "optim.lr=5e-2")
    loaded = load_checkpoint_model(resolve(tmp_path / "run"), (), find_place(SerialWorld()))
    plain = build_model(loaded.config.model, Vocabulary(257, 256), 0)
    state = weights_of(loaded)
    assert state.keys() == dict(plain.named_parameters()).keys()
    assert (state["blocks.1.mlp.0.weight"] - dict(loaded.model.named_parameters())["blocks.1.mlp.0.weight"]).any()
    ids = torch.randint(0, 257, (2, 30))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(state[name])
        assert (plain.logits(ids)[0] - loaded.model.logits(ids)[0]).abs().max() < 1e-5


def test_a_run_begins_with_merged_adapters_and_new_ones_of_its_own(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "one", *SHORT, LORA, "optim.lr=5e-2")
    run_training(data_dir, tmp_path / "two", "train.steps=1", f"init.from={tmp_path / 'one'}", "lora={rank: 1}")
    expected = merged(weights(tmp_path / "one", 4), 4.0)
    found = weights(tmp_path / "two", 1)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["blocks.0.attention.qkv.lora_a"].shape == (1, 32)


@pytest.mark.parametrize("words", [(LORA,), ("freeze=['^embed', '^blocks.0']",), ()])
def test_only_what_is_trained_is_sent(words, data_dir, tmp_path):
    """Counted bytes of a step: the ring sends 2 (n - 1) / n of the trained parameters, each of 4 bytes."""
    config = make_config(data_dir, tmp_path / "run", *words, "sync=allreduce", "train.global_batch=4")

    def of_a_step(world):
        learner, _ = build_learner(config, world)
        learner.run(0, 1)
        before = learner.bytes_sent
        learner.run(1, 2)
        trained = [p.numel() for p in learner.model.parameters() if p.requires_grad]
        in_optimizer = [p.numel() for group in learner.optimizer.param_groups for p in group["params"]]
        assert sum(in_optimizer) == sum(trained)
        learner.close()
        return learner.bytes_sent - before, 4 * sum(trained), 4 * sum(p.numel() for p in learner.model.parameters())

    for sent, trained, everything in run_on_threads(2, of_a_step):
        assert sent == trained  # 2 ranks: 2 (n - 1) / n is 1
        assert (trained < everything / 2) == bool(words)


def small(**settings):
    return TransformerConfig.model_validate({"layers": 2, "width": 16, "heads": 2, **settings}).build(Vocabulary(20, 1))


@pytest.mark.parametrize(
    ("settings", "lora", "message"),
    [
        ({}, {"targets": ("head",)}, "finds the head, whose matrix is the embedding too; leave it out"),
        ({}, {"targets": ("",)}, "finds the head, whose matrix is the embedding too"),
        ({"tie_embeddings": False}, {"targets": ("^head",)}, "finds the head, which takes no adapter; use lora.full"),
        ({}, {"targets": ("nowhere",)}, r"finds no linear layer; they are blocks.0.attention.qkv, blocks.0"),
        ({}, {"rank": 17}, r"lora.rank: 17 is more than blocks.0.attention.qkv has, \(48, 16\)"),
        ({}, {"full": ("nothing",)}, "lora.full: 'nothing' finds no parameter"),
    ],
)
def test_adapters_where_none_can_be_are_refused(settings, lora, message):
    with pytest.raises(UserError, match=message):
        add_lora(small(**settings), LoraConfig.model_validate(lora))


def test_what_is_named_in_full_is_trained_beside_adapters():
    model = small(head_bias=True)
    add_lora(model, LoraConfig(rank=1, targets=("mlp",), full=("^head",)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if not is_adapter(name)} == {"head.bias"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("freeze=['nowhere']",), "freeze: 'nowhere' finds no parameter; names are embed.weight"),
        (("freeze=['.']",), "freeze: nothing is left to train"),
        (("freeze=['(']",), r"freeze.*'\(' is not a regular expression"),
        (("model={family: hmm, states: 4}", LORA), "lora: for what is trained by gradients"),
        (("model={family: hmm, states: 4}", "freeze=[a]"), "freeze: for what is trained by gradients"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(words, message, data_dir, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        config, vocabulary = make_config(data_dir, tmp_path / "run", *words), Vocabulary(257, 256)
        model_of(config, vocabulary, build_task(config, vocabulary))
    assert "\n" not in str(error.value)


def rates_of(model, config):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rates_fall_by_layers_and_the_head_may_have_its_own():
    config = OptimConfig.model_validate({"layer_decay": 0.5, "groups": [{"match": r"^head\.", "lr_scale": 10.0}]})
    positions = {"kind": "learned", "max_seq_len": 9}
    model = small(tie_embeddings=False, embed_norm=True, positions=positions, bias=True, head_bias=True)
    rates = rates_of(model, config)
    assert (
        rates["embed.weight"][0]
        == rates["entrance.positions.table.weight"][0]
        == rates["entrance.norm.bias"][0]
        == 1 / 8
    )
    assert rates["blocks.0.attention.qkv.weight"] == (1 / 4, 0.1)
    assert rates["blocks.1.mlp.2.bias"] == (1 / 2, 0.0)
    assert rates["norm.weight"][0] == 1
    assert rates["head.weight"][0] == rates["head.bias"][0] == 10
    assert build_optimizer(model, config).param_groups[0]["lr"] == config.lr / 8


def test_what_is_trained_and_how_is_printed(data_dir, tmp_path, caplog):
    caplog.set_level("INFO", "hvdlm")
    run_training(data_dir, tmp_path / "run", "train.steps=1", LORA)
    said = caplog.text
    assert re.search(r"training [\d,]+ of [\d,]+ parameters \(\d+\.\d+%\)", said)
    assert re.search(
        r"group of [\d,]+ parameters: lr x 1, weight decay 0\.1: blocks\.0-1\.attention\.qkv\.lora_a, ", said
    )
    assert "embed.weight" not in said.split("training ")[1].split("steps")[0]


def test_a_run_without_any_of_it_says_nothing(data_dir, tmp_path, caplog):
    caplog.set_level("INFO", "hvdlm")
    run_training(data_dir, tmp_path / "run", "train.steps=1")
    assert "group of" not in caplog.text
    assert RunConfig.model_fields["lora"].default is None
