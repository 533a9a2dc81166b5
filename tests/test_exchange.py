"""Models to and from Hugging Face's folders: the same logits on both sides, tied and untied, far from the beginning."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvdlm.errors import UserError
from hvdlm.exchange import TaskHead, exported, is_folder, layout_for, read_model, read_section
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig

transformers = pytest.importorskip("transformers", reason="transformers (the test extra) is not installed")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

V, LENGTH = 97, 150  # rotary positions are compared behind 100, where a wrong order of pairs shows
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.3,
}
ROPE3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160, "initializer_range": 0.3}
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
}
NEOX = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "use_parallel_residual": False,
    "rotary_pct": 1.0,
    "initializer_range": 0.3,
}
THEIRS = {
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "gpt2-untied": ("GPT2", "LMHeadModel", {**GPT2, "tie_word_embeddings": False, "n_inner": 40}),
    "gpt2-erf": ("GPT2", "LMHeadModel", {**GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", "ForCausalLM", LLAMA),
    "llama-tied": ("Llama", "ForCausalLM", {**LLAMA, "tie_word_embeddings": True, "head_dim": 12}),
    "llama-rope3": ("Llama", "ForCausalLM", {**LLAMA, "rope_theta": 1e4, "rope_scaling": ROPE3}),
    "llama-linear": (
        "Llama",
        "ForCausalLM",
        {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "mistral": ("Mistral", "ForCausalLM", {**LLAMA, "sliding_window": None}),
    "mistral-window": ("Mistral", "ForCausalLM", {**LLAMA, "sliding_window": 20}),
    "neox": ("GPTNeoX", "ForCausalLM", NEOX),
    "neox-tied": ("GPTNeoX", "ForCausalLM", {**NEOX, "tie_word_embeddings": True}),
    "bert": ("Bert", "ForMaskedLM", BERT),
    "bert-relu": ("Bert", "ForMaskedLM", {**BERT, "hidden_act": "relu", "type_vocab_size": 3}),
}


def built(stem, kind, settings):
    """A model of theirs whose every tensor is random, biases and norms too."""
    torch.manual_seed(1)
    settings = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **settings}
    config = getattr(transformers, f"{stem}Config")(**settings, attn_implementation="eager")
    model = getattr(transformers, f"{stem}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def folder_of(model, folder):
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def ours_of(found):
    """Our model of what was read."""
    model = build_model(TransformerConfig.model_validate(found.section), Vocabulary(found.vocab_size, 1), 0).eval()
    state = {**found.body, **found.head}
    assert state.keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model


def ids(rows=2):
    return torch.randint(0, V - 1, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


def close(one, two):
    assert one.shape == two.shape
    assert one.std() > 0.1  # not all alike
    assert (one - two).abs().max() < 1e-5 * max(1.0, float(two.abs().max()))


def written(found, folder):
    """A folder of what `exported` gives."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found.config))
    save_file(found.tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_logits_are_the_same_there_here_and_there_again(name, tmp_path):
    stem, kind, settings = THEIRS[name]
    model = built(stem, kind, settings)
    found = read_model(folder_of(model, tmp_path / "there"))
    ours = ours_of(found)
    expected = model(ids()).logits
    close(ours.logits(ids())[0], expected)
    back = exported(ours.options, dict(ours.named_parameters()), Vocabulary(V, 1, 0), seq_len=LENGTH)
    assert back.config["architectures"] == ["LlamaForCausalLM" if name == "mistral" else f"{stem}{kind}"]
    auto = transformers.AutoModelForMaskedLM if stem == "Bert" else transformers.AutoModelForCausalLM
    again, report = auto.from_pretrained(written(back, tmp_path / "again"), output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    close(again.eval()(ids()).logits, expected)
    filled = ("mlp_width", "head_width", "kv_heads")  # written out, where ours says null
    before, after = ({**read_section(tmp_path / place), **dict.fromkeys(filled)} for place in ("there", "again"))
    assert before == after


@torch.no_grad()
def test_pairs_of_texts_have_kinds(tmp_path):
    model = built("Bert", "ForMaskedLM", BERT)
    ours = ours_of(read_model(folder_of(model, tmp_path)))
    types = (torch.arange(LENGTH) > 70).long().expand(2, -1)
    close(ours.head(ours(ids(), types=types)[0]), model(ids(), token_type_ids=types).logits)
    lengths = torch.tensor([40, LENGTH])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    padded = ours.head(ours(ids(), lengths=lengths, types=types)[0])
    close(padded[0, :40], model(ids(), attention_mask=mask, token_type_ids=types).logits[0, :40])


@torch.no_grad()
def test_a_body_alone_gives_the_same_hidden_vectors(tmp_path):
    for stem, settings in (("Bert", BERT), ("GPT2", GPT2), ("Llama", LLAMA)):
        model = built(stem, "Model", settings)
        found = read_model(folder_of(model, tmp_path / stem))
        assert found.head == {}
        ours = build_model(TransformerConfig.model_validate(found.section), Vocabulary(V, 1), 0).eval()
        state = dict(ours.named_parameters())
        assert all(name.startswith("head.") for name in state.keys() - found.body.keys())
        for name, tensor in found.body.items():
            state[name].copy_(tensor)
        close(ours(ids())[0], model(ids()).last_hidden_state)


@torch.no_grad()
def test_parts_half_precision_and_old_names_are_read(tmp_path):
    model = built("Bert", "ForMaskedLM", BERT)
    folder = folder_of(model, tmp_path / "whole")
    whole = read_model(folder)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    (tmp_path / "parts" / "tokenizer.json").write_text("{}")
    parts = read_model(tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert all(torch.equal(tensor, parts.body[name]) for name, tensor in whole.body.items())
    old = load_file(folder / "model.safetensors")
    old = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): old[name] for name in old}
    old["bert.embeddings.position_ids"] = torch.arange(160)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in old.items()}
    save_file(half, folder / "model.safetensors")
    found = read_model(folder)
    assert "cls.seq_relationship.weight" in found.unused
    assert all(torch.equal(tensor.half().float(), found.body[name]) for name, tensor in whole.body.items())


@pytest.mark.parametrize(
    ("stem", "changes", "message"),
    [
        ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: true is none"),
        (
            "GPT2",
            {"activation_function": "tanh"},
            "activation_function: tanh is none that our model has, only gelu_new",
        ),
        ("GPT2", {"layer_norm_epsilon": None}, "has no layer_norm_epsilon"),
        ("GPT2", {"n_layer": 3}, r"the body lacks 12 of 40 weights: h\.2\.ln_1\.weight"),
        ("GPT2", {"n_layer": 1}, r"no place for: h\.1\.attn\.c_attn\.bias"),
        ("GPT2", {"n_layer": "2"}, "n_layer: 2 is none that our model has, only a whole number"),
        ("GPT2", {"tie_word_embeddings": False}, r"the head for text lacks 1 of 1 weights: lm_head\.weight"),
        ("GPT2", {"tie_word_embeddings": False, "architectures": ["GPT2Model"]}, None),
        ("GPT2", {"add_cross_attention": True}, "add_cross_attention: true"),
        ("Llama", {"attention_bias": True}, "attention_bias: true is none that our model has, only false"),
        ("Llama", {"model_type": "qwen2"}, "model_type: qwen2 is none that can be read: gpt2, llama"),
        ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling: yarn is none"),
        ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "without beta is not known"),
        ("Llama", {"partial_rotary_factor": 0.5}, "turn the part 0.5 of each head"),
        ("Llama", {"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4} is not known here"),
        ("Llama", {"some_new_gate": True}, "some_new_gate: true is not known here and may change"),
        ("Llama", {"some_new_gate": False}, None),
        (
            "Llama",
            {"num_key_value_heads": 4},
            r"blocks.0.attention.qkv.weight is \(64, 32\) in its weights, and \(96, 32\) as",
        ),
        ("Llama", {"tie_word_embeddings": True}, "lm_head.weight is another matrix than the embedding"),
        ("Bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: relative_key is none"),
        ("Bert", {"is_decoder": True}, "is_decoder: true is none"),
    ],
)
def test_what_our_model_cannot_be_is_refused_by_name(stem, changes, message, tmp_path):
    kind, settings = {"GPT2": ("LMHeadModel", GPT2), "Llama": ("ForCausalLM", LLAMA), "Bert": ("ForMaskedLM", BERT)}[
        stem
    ]
    folder = folder_of(built(stem, kind, settings), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    if message is None:
        read_model(folder)
        return
    with pytest.raises(UserError, match=message) as error:
        read_model(folder)
    assert "\n" not in str(error.value)


def test_settings_as_they_are_published_are_read(tmp_path):
    """What config.json has of older versions of transformers, as those of distilgpt2, SmolLM2, bert-base-chinese."""
    sampling = {"do_sample": True, "max_length": 50, "top_p": 0.9}
    js = {"kv_cache_dtype": {"fp16": "float16"}}
    rope = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}
    for stem, kind, settings, published in (
        ("GPT2", "LMHeadModel", GPT2, {"_num_labels": 1, "n_ctx": 160, "summary_type": "cls_index", **sampling}),
        ("Llama", "ForCausalLM", LLAMA, {"is_llama_config": True, "rope_interleaved": False, **rope}),
        ("Llama", "ForCausalLM", LLAMA, {"transformers.js_config": js, "pretraining_tp": 1, **sampling}),
        ("Bert", "ForMaskedLM", BERT, {"directionality": "bidi", "pooler_num_fc_layers": 3, "output_past": True}),
    ):
        folder = folder_of(built(stem, kind, settings), tmp_path / stem)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **published}))
        section = read_section(folder)
        if "rope_theta" in published:
            assert (section["positions"]["base"], section["positions"]["scaling"]["factor"]) == (5e5, 2.0)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no config.json, which says what model"),
        ("tokenizer.json", "has no tokenizer.json, which says what its ids stand for"),
        ("model.safetensors", "has no model.safetensors and no"),
        ("pickled", "has its weights in pytorch_model.bin alone, which is never read"),
        ("part", "has not b.safetensors, which its index names"),
        ("climb", r"names '\.\./b\.safetensors', which is no file beside it"),
        ("cut", "cannot be read"),
        ("int8", "is int8: quantized weights cannot be trained"),
    ],
)
def test_a_missing_part_is_one_clear_line(lost, message, tmp_path):
    folder = folder_of(built("GPT2", "LMHeadModel", GPT2), tmp_path)
    weights = folder / "model.safetensors"
    if (folder / lost).exists():
        (folder / lost).unlink()
    elif lost == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif lost in ("part", "climb"):
        name = "b.safetensors" if lost == "part" else "../b.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    elif lost == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        name = "transformer.h.0.mlp.c_fc.weight"
        save_file({**tensors, name: tensors[name].to(torch.int8)}, weights)
    assert is_folder(folder)
    with pytest.raises(UserError, match=message) as error:
        read_model(folder)
    assert "\n" not in str(error.value)


def options_of(**settings):
    positions = {"kind": "learned", "max_seq_len": 160}
    return TransformerConfig.model_validate({"layers": 1, "width": 32, "positions": positions, **settings})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_norm": True}, "^model.qk_norm: True: no layout of transformers"),
        ({"positions": "alibi"}, "^model.positions: alibi: "),
        ({"window": 8}, "^model.window: 8: "),
        ({"kv_heads": 2}, "^model.kv_heads: 2: "),
        ({"logit_softcap": 30.0, "embed_scale": True}, "^model.embed_scale: True, model.logit_softcap: 30.0: "),
        (
            {"positions": {"kind": "rotary", "scaling": {"kind": "ntk", "factor": 2.0}}},
            "^model.positions.scaling: ntk: ",
        ),
    ],
)
def test_what_no_layout_can_say_is_not_written(options, message):
    with pytest.raises(UserError, match=message):
        layout_for(options_of(**options))


@pytest.mark.parametrize("positions", ["rotary", {"kind": "learned", "max_seq_len": 160}])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_model_without_biases_is_one_with_biases_of_0(positions, tied, tmp_path):
    """Our default model, rotary with LayerNorm, is a GPT-NeoX; with learned positions a GPT-2."""
    options = options_of(positions=positions, tie_embeddings=tied)
    model = build_model(options, Vocabulary(V, 1), 0).eval()
    for parameter in model.parameters():
        parameter.mul_(5)
    found = exported(options, dict(model.named_parameters()), Vocabulary(V, 1), seq_len=LENGTH)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        written(found, tmp_path), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    close(theirs.eval()(ids()).logits, model.logits(ids())[0])
    again = tmp_path / "again"
    again.mkdir()
    theirs.save_pretrained(again)
    (again / "tokenizer.json").write_text("{}")
    close(ours_of(read_model(again)).logits(ids())[0], model.logits(ids())[0])


def test_no_tensor_is_left_behind():
    options = options_of()
    state = dict(build_model(options, Vocabulary(V, 1), 0).named_parameters())
    with pytest.raises(UserError, match="head.bias, head.weight: a gpt2 of transformers has no place for it"):
        exported(options, {**state, "head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}, Vocabulary(V, 1))
    with pytest.raises(UserError, match="embed.weight has 97 rows, and the vocabulary 98 ids"):
        exported(options, state, Vocabulary(V + 1, 1))


HEADS = {
    "classify": ("AutoModelForSequenceClassification", ("bad", "good", "neither")),
    "tag": ("AutoModelForTokenClassification", ("O", "B-PER", "I-PER")),
    "span": ("AutoModelForQuestionAnswering", ("start", "end")),
}
BODIES = {"gpt2": GPT2, "llama": LLAMA, "bert": BERT, "gpt_neox": NEOX, "mistral": {**LLAMA, "sliding_window": 20}}
STEMS = {"gpt2": "GPT2", "llama": "Llama", "bert": "Bert", "gpt_neox": "GPTNeoX", "mistral": "Mistral"}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("body", BODIES)
@torch.no_grad()
def test_heads_of_tasks_go_there_and_back_with_their_labels(body, kind, tmp_path):
    found = read_model(folder_of(built(STEMS[body], "Model", BODIES[body]), tmp_path / "body"))
    options = TransformerConfig.model_validate(found.section)
    model = build_model(options, Vocabulary(V, 1), 0).eval()
    state = dict(model.named_parameters())
    for name, tensor in found.body.items():
        state[name].copy_(tensor)
    auto, labels = HEADS[kind]
    generator = torch.Generator().manual_seed(4)
    head = {"weight": torch.randn(len(labels), 32, generator=generator)}
    if kind != "classify" or body in ("gpt2", "gpt_neox", "bert"):
        head["bias"] = torch.randn(len(labels), generator=generator)
    hidden, _ = model(ids())
    pooling = None
    if kind == "classify":
        pooling = "cls" if body == "bert" else "last"
        hidden = hidden[:, 0 if body == "bert" else -1]
    if kind == "classify" and body == "bert":
        head |= {"pooler.weight": torch.randn(32, 32, generator=generator), "pooler.bias": torch.ones(32)}
        hidden = torch.tanh(hidden @ head["pooler.weight"].T + 1)
    expected = hidden @ head["weight"].T + head.get("bias", 0.0)
    back = exported(
        options, found.body, Vocabulary(V, 1), head=TaskHead(kind, head, labels, pooling), seq_len=LENGTH, pad_id=V - 1
    )
    theirs, report = getattr(transformers, auto).from_pretrained(written(back, tmp_path), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    outputs = theirs.eval()(ids(), attention_mask=torch.ones(2, LENGTH))
    logits = torch.stack((outputs.start_logits, outputs.end_logits), -1) if kind == "span" else outputs.logits
    assert theirs.config.id2label == dict(enumerate(labels))
    (tmp_path / "tokenizer.json").write_text("{}")
    again = read_model(tmp_path)
    assert again.task_head is not None
    assert (again.task_head.kind, again.task_head.labels, again.task_head.pooling) == (kind, labels, pooling)
    assert torch.equal(again.task_head.state["weight"], head["weight"])
    close(logits, expected)
