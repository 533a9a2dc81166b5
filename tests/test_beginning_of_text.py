"""A beginning of text stands before each document where the vocabulary's publisher has one, and nowhere else."""

import json

import h5py
import numpy as np
import pytest
from harness import documents_of, preprocess, run_training, texts_of
from test_tokenizer import TEXTS, make, train_sentencepiece, write_many_ranks

from hvdlm import checkpoint
from hvdlm.data.bridges import convert
from hvdlm.data.inspection import inspect
from hvdlm.data.manifest import read_manifest
from hvdlm.errors import UserError
from hvdlm.inference import generate
from hvdlm.tokenizer import TokenizerConfig, digest, from_json, load, make_fast, read_any, train_bpe
from hvdlm.tokenizer.published import before_text
from hvdlm.tokenizer.sentencepiece_model import read_model
from hvdlm.tokenizer.study import compare, show

BOS = "<|begin_of_text|>"
EOS = "<|endoftext|>"
SPELT = [*TEXTS, BOS, f"a {BOS} b{BOS}", "<|endoftext|>"]


def template(*tokens, ids=None):
    """A TemplateProcessing that puts these before a text and nothing after it."""
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    special = {token: {"id": token, "ids": [0], "tokens": [token]} for token in tokens}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    after = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": [*pieces, text, *after], "pair": [], "special_tokens": special}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
BEFORE = {
    "llama": {"type": "Sequence", "processors": [BYTE_LEVEL, template(BOS)]},
    "gemma": template(BOS),
    "bert": {"type": "BertProcessing", "sep": ["<|endoftext|>", 0], "cls": [BOS, 300]},
    "roberta": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 0], "cls": [BOS, 300], "trim_offsets": True},
}
AFTER = {"none": None, "byte level": BYTE_LEVEL, "gpt2": template("<|endoftext|>"), "template": template()}


@pytest.fixture(scope="session")
def trained():
    """A tokenizer.json of 301 ids, the last of which is BOS."""
    content = json.loads(train_bpe(iter(TEXTS * 9), 300).to_json())
    top = max(content["model"]["vocab"].values())
    content["added_tokens"].append({**content["added_tokens"][0], "id": top + 1, "content": BOS})
    return content


@pytest.fixture
def file(trained, tmp_path):
    """Writes a tokenizer.json with a post_processor and a tokenizer_config.json; gives its path."""

    def write(rule, **config):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({**trained, "post_processor": rule}))
        if config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return path

    return write


def check_documents(tokenizer, texts=SPELT):
    """Each document is bos, its text's ids, eos; the two stand nowhere else."""
    expected = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    ids, counts = tokenizer.encode_documents(texts)
    assert ids.tolist() == sum(expected, []) and counts.tolist() == list(map(len, expected))
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        assert np.count_nonzero(ids == token) == len(texts)
    parts = np.split(ids, np.cumsum(counts)[:-1])
    assert [tokenizer.decode(part) for part in parts] == [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert tokenizer.encode_documents([])[0].tolist() == []


@pytest.mark.parametrize("name", BEFORE)
def test_what_the_publisher_puts_before_a_text_begins_documents(file, name):
    found = make("bpe", path=file(BEFORE[name]))
    assert found.bos_id == found.vocab_size - 1
    check_documents(found)
    fast = make_fast(found, TEXTS)
    assert fast is not found and fast.bos_id == found.bos_id
    check_documents(fast)
    again = from_json(found.to_json())
    assert (again.bos_id, again.eos_id, digest(again)) == (found.bos_id, found.eos_id, digest(found))
    check_documents(again)


@pytest.mark.parametrize("name", AFTER)
def test_without_one_a_file_is_as_it_was(file, name):
    path = file(AFTER[name])
    found = make("bpe", path=path)
    assert found.bos_id is None and found.to_json() == path.read_text()


def test_the_setting_wins_over_the_publisher(file):
    path = file(BEFORE["llama"])
    none = make("bpe", path=path, bos="none")
    assert none.bos_id is None and none.to_json() == path.read_text() == load(path).to_json()
    path = file(None)
    named = make("bpe", path=path, bos=BOS)
    check_documents(named)
    kept = path.with_name("kept.json")
    kept.write_text(named.to_json())
    assert digest(load(kept)) == digest(make("bpe", path=kept)) == digest(named)  # a data folder's file given again
    assert digest(make("bpe", path=kept, bos="none")) == digest(none.__class__(path.read_text()))
    for bos, message in (
        ("<x>", "has no token '<x>', which tokenizer.bos names"),
        ("<|endoftext|>", "ends documents, so it cannot begin them"),
        ("a", "texts need the token 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            make("bpe", path=path, bos=bos)


@pytest.mark.parametrize("bos_token", [BOS, {"content": BOS, "lstrip": False}])
def test_tokenizer_config_beside_a_file_wins_over_it(file, bos_token):
    assert make("bpe", path=file(BEFORE["llama"], add_bos_token=False, bos_token=bos_token)).bos_id is None
    assert make("bpe", path=file(None, bos_token=bos_token)).bos_id is None  # named, but not said to be put anywhere
    check_documents(make("bpe", path=file(None, add_bos_token=True, bos_token=bos_token)))
    path = file(None, add_bos_token=True, bos_token="<|endoftext|>")  # as OPT's
    assert make("bpe", path=path).bos_id is None
    for config, message in (
        ({"add_bos_token": True, "bos_token": "<x>"}, "bos_token is '<x>', no token of tokenizer.json"),
        (
            {"add_bos_token": True},
            "tokenizer_config.json: has add_bos_token: true, but no bos_token; set tokenizer.bos",
        ),
        ({"add_bos_token": "yes"}, "tokenizer_config.json: is no .* neither true nor false"),
        ({"bos_token": 1}, "tokenizer_config.json: is no .* 1 is no token"),
    ):
        with pytest.raises(UserError, match=message):
            make("bpe", path=file(None, **config))
    path.with_name("tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config.json: is no tokenizer_config.json \(no JSON object\)"):
        make("bpe", path=path)


def test_another_tokenizer_config_makes_another_plan(file, corpus, tmp_path):
    section = {"kind": "bpe", "path": str(file(BEFORE["llama"], add_bos_token=False))}
    assert preprocess(corpus, tmp_path / "data", tokenizer=section).bos_id is None
    assert "bos_id" not in json.loads((tmp_path / "data" / "manifest.json").read_text())
    preprocess(corpus, tmp_path / "data", tokenizer=section)  # is complete already
    file(BEFORE["llama"], add_bos_token=True, bos_token=BOS)
    with pytest.raises(UserError, match="holds another data set"):
        preprocess(corpus, tmp_path / "data", tokenizer=section)


def test_a_beginning_that_its_file_does_not_mark_as_special_is_still_no_text(trained, file):
    path = file(BEFORE["llama"])
    content = json.loads(path.read_text())
    content["added_tokens"][-1]["special"] = False
    path.write_text(json.dumps(content))
    check_documents(make("bpe", path=path))


def test_several_tokens_before_a_text_are_no_beginning(file, caplog):
    assert make("bpe", path=file(template(BOS, "<unk>"))).bos_id is None
    assert f"puts {BOS} <unk> before a text; documents get none, tokenizer.bos names one" in caplog.text
    with pytest.raises(UserError, match="what post_processor puts before texts is '<x>', no token of tokenizer.json"):
        make("bpe", path=file(template("<x>")))
    for rule in (
        {"type": "BertProcessing"},
        {"type": "BertProcessing", "cls": [[]]},
        {"type": "Sequence"},
        "x",
        {"type": "TemplateProcessing", "single": [1]},
    ):
        with pytest.raises(ValueError, match="post_processor: "):
            before_text(rule)
        with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json \(post_processor: "):
            make("bpe", path=file(rule))


def test_kinds_that_are_learnt_have_none(tmp_path):
    for values in ({"kind": "byte"}, {"kind": "char"}, {"kind": "word"}):
        with pytest.raises(ValueError, match="bos is for kind: bpe or "):
            TokenizerConfig.model_validate({**values, "bos": BOS})
    with pytest.raises(ValueError, match="bos names a token of the file in path; a trained bpe has none"):
        TokenizerConfig.model_validate({"kind": "bpe", "bos": BOS})
    assert make("byte", bos="none").bos_id is None
    assert all(make(kind, vocab_size=300).bos_id is None for kind in ("byte", "char", "word", "bpe"))


def test_llama_3_rank_files_begin_texts_and_others_do_not(tmp_path):
    path = write_many_ranks(tmp_path / "tokenizer.model", range(128000))
    found = read_any(path)
    assert (found.bos_id, found.eos_id, found.vocab_size) == (128000, 128001, 128256)
    check_documents(found)
    check_documents(from_json(found.to_json()), ["a"])
    assert make("tiktoken", path=path, bos=BOS).to_json() == found.to_json()
    old = make("tiktoken", path=path, bos="none")
    assert old.bos_id is None and "bos_id" not in json.loads(old.to_json())
    with pytest.raises(UserError, match="has no token '<s>' that is known"):
        make("tiktoken", path=path, bos="<s>")
    other = write_many_ranks(tmp_path / "cl100k_base.tiktoken", range(100256))
    assert make("tiktoken", path=other).bos_id is None
    with pytest.raises(UserError, match=r"has no token '<\|begin_of_text\|>' that is known"):
        make("tiktoken", path=other, bos=BOS)
    for ids in ({"bos_id": 5}, {"bos_id": 128001}, {"bos_id": 200000}, {"bos_id": -5}, {"eos_id": -1}):
        with pytest.raises(UserError, match="is a rank or the other, or vocab_size 128256 too small"):
            from_json(json.dumps({**json.loads(found.to_json()), **ids}))


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({}, None),  # spm_train's defaults, for nobody asked for "<s>"
        ({"bos_id": -1}, None),  # T5
        ({"byte_fallback": True, "vocab_size": 600}, "<s>"),  # Llama 2, Mistral
        ({"bos_id": 2, "eos_id": 1, "pad_id": 0, "unk_id": 3, "bos_piece": "<bos>"}, "<bos>"),  # Gemma
    ],
)
def test_sentencepiece_models_with_a_beginning_of_their_own(tmp_path, options, piece, caplog):
    path = train_sentencepiece(tmp_path / "a.model", **options)
    with caplog.at_level("INFO"):
        found = read_model(path)
    assert ("documents do not begin with its '<s>'" in caplog.text) == (options == {})
    assert ("documents begin with " in caplog.text) == (piece is not None)
    assert found.bos_id == (None if piece is None else found._processor.piece_to_id(piece))
    if piece is None:
        assert list(json.loads(found.to_json())) == ["hvdlm", "model"]
        return
    texts = [*TEXTS, piece, f"a{piece}b"]
    check_documents(found, texts)
    check_documents(from_json(found.to_json()), texts)
    assert digest(read_model(path, "none")) == digest(from_json(read_model(path, "none").to_json())) != digest(found)


def test_the_settings_of_a_sentencepiece_model(tmp_path):
    path = train_sentencepiece(tmp_path / "a.model", user_defined_symbols=["<mine>"])
    check_documents(read_model(path, "<s>"))
    for bos, message in (
        ("<x>", "has no piece '<x>'"),
        ("<mine>", "is no control piece"),
        ("</s>", "ends documents, so it cannot begin them"),
    ):
        with pytest.raises(UserError, match=message):
            read_model(path, bos)
    beside = tmp_path / "tokenizer_config.json"
    beside.write_text(json.dumps({"add_bos_token": True, "bos_token": {"content": "<s>"}}))
    assert read_model(path).bos_id == 1
    beside.write_text(json.dumps({"add_bos_token": True, "bos_token": "</s>"}))
    assert read_model(path).bos_id is None
    beside.write_text(json.dumps({"add_bos_token": False, "bos_token": "<s>"}))
    assert read_model(train_sentencepiece(path, byte_fallback=True, vocab_size=600)).bos_id is None


@pytest.fixture
def data(file, corpus, tmp_path):
    """A data folder whose documents begin with BOS."""
    folder = tmp_path / "data"
    preprocess(corpus, folder, tokenizer={"kind": "bpe", "path": str(file(BEFORE["llama"]))})
    return folder


def test_shards_and_manifest_tell_of_it(data, corpus):
    manifest = read_manifest(data)
    bos_id = load(data / "tokenizer.json").bos_id
    assert manifest.bos_id == bos_id is not None
    assert manifest.statistics["bos_tokens"] == manifest.num_documents == inspect(data)["statistics"]["bos_tokens"]
    with h5py.File(data / manifest.splits["train"].shards[0].file) as shard:
        assert shard.attrs["bos_id"] == bos_id
    assert all(document[0] == bos_id for document in documents_of(data))
    texts = [path.read_text() for path in sorted(corpus.iterdir()) if path.read_text()]
    assert sorted(texts_of(data) + texts_of(data, "val")) == sorted(texts)
    content = json.loads((data / "manifest.json").read_text())
    for bos, message in ((999, "bos_id 999 is not in a vocabulary of"), (None, "bos_id: is None, .* has")):
        (data / "manifest.json").write_text(json.dumps({**content, "bos_id": bos}))
        with pytest.raises(UserError, match=message):
            inspect(data)


def test_a_folders_own_vocabulary_is_used_again_as_its_shards_have_it(file, corpus, data, tmp_path):
    """Also where the file itself, which shards without a beginning keep as it was, tells of one."""
    path = str(file(BEFORE["llama"]))
    preprocess(corpus, tmp_path / "without", tokenizer={"kind": "bpe", "path": path, "bos": "none"})
    for folder in (tmp_path / "without", data):
        again = make("bpe", path=folder / "tokenizer.json")
        assert digest(again) == read_manifest(folder).tokenizer_digest
        assert again.bos_id == read_manifest(folder).bos_id
    (tmp_path / "without" / "manifest.json").unlink()
    assert make("bpe", path=tmp_path / "without" / "tokenizer.json").bos_id is not None


def test_prompts_begin_as_documents_do(data, data_dir, tmp_path, monkeypatch):
    prompts = []
    monkeypatch.setattr(generate.Engine, "add", lambda engine, request, listener: prompts.append(request.prompt))
    for name, folder in (("with", data), ("without", data_dir)):
        run_training(folder, tmp_path / name, "train.steps=1")
        generate.continue_text(tmp_path / name, (), "ab", generate.Texts())
    bos_id = load(data / "tokenizer.json").bos_id
    assert [ids[0] for ids in prompts] == [bos_id, 256] and len(prompts[0]) > 1
    records = [checkpoint.read_state(checkpoint.resolve(tmp_path / name)) for name in ("with", "without")]
    assert [record.get("bos_id") for record in records] == [bos_id, None]


@pytest.mark.parametrize("to", ["megatron", "nanogpt", "jsonl"])
def test_other_formats_neither_lose_it_nor_double_it(data, tmp_path, to):
    convert(data, tmp_path / "away", to=to)
    convert(tmp_path / "away", tmp_path / "back", to="hvdlm")
    assert read_manifest(tmp_path / "back").train_digest == read_manifest(data).train_digest
    assert digest(load(tmp_path / "back" / "tokenizer.json")) == digest(load(data / "tokenizer.json"))
    if to == "jsonl":
        lines = (tmp_path / "away" / "train.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == texts_of(data)


@pytest.mark.parametrize("ends", [{}, {"bos": "none"}, {"eos": "<end>"}, {"eos": "<end>", "bos": "none"}, {"eos": EOS}])
@pytest.mark.parametrize("way", [["megatron"], ["nanogpt"], ["jsonl"], ["megatron", "jsonl", "nanogpt"]])
def test_other_formats_have_a_plain_vocabulary_that_comes_back_with_the_same_ends(file, corpus, tmp_path, ends, way):
    from tokenizers import Tokenizer as Backend

    path = file(BEFORE["llama"])
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 301, "content": "<end>"})
    path.write_text(json.dumps(content))
    data = tmp_path / "data"
    preprocess(corpus, data, tokenizer={"kind": "bpe", "path": str(path), **ends})
    last = data
    for number, form in enumerate(way):
        convert(last, tmp_path / f"{number}", to=form)
        last = tmp_path / f"{number}"
        assert (last / "tokenizer.json").read_text() == path.read_text()
        Backend.from_file(str(last / "tokenizer.json"))
    convert(last, tmp_path / "back", to="hvdlm")
    was, found = read_manifest(data), read_manifest(tmp_path / "back")
    assert found.train_digest == was.train_digest and found.tokenizer_digest == was.tokenizer_digest
    assert (found.bos_id, found.eos_id) == (was.bos_id, was.eos_id)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (data / "tokenizer.json").read_text()
    assert not (tmp_path / "back" / "tokenizer_config.json").exists()
    config = json.loads((last / "tokenizer_config.json").read_text())
    assert (config["add_bos_token"], config["eos_token"]) == ("bos" not in ends, ends.get("eos", EOS))


def test_ids_of_another_tool_are_kept_as_they_are(file, tmp_path, caplog):
    """The publisher's file is beside them; whether documents begin as it says is seen from the ids."""
    path = file(BEFORE["llama"])
    tokenizer = make("bpe", path=path)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    for name, documents, has_bos in (
        ("with", [[bos, 5, 6, eos], [bos, 7, eos], [eos]], True),
        ("without", [[5, 6, eos], [7, eos]], False),
        ("some", [[bos, 5, eos], [7, eos]], False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.bin").write_bytes(np.array(sum(documents, []), "<u2").tobytes())
        convert(folder, tmp_path / f"{name}-data", to="hvdlm", tokenizer=path)
        found = load(tmp_path / f"{name}-data" / "tokenizer.json")
        assert found.bos_id == read_manifest(tmp_path / f"{name}-data").bos_id == (bos if has_bos else None)
        assert [document.tolist() for document in documents_of(tmp_path / f"{name}-data")] == documents
    assert "some: 1 of 2 documents begin with the beginning-of-text id" in caplog.text


def test_llm_c_marks_only_beginnings_with_llama_3(tmp_path):
    ranks = write_many_ranks(tmp_path / "tokenizer.model", range(128000))
    (tmp_path / "tokenizer.json").write_text(read_any(ranks).to_json())
    documents = [[128000, 5, 6], [128000, 7], [128000, 8, 9, 10]]
    ids = np.array(sum(documents, []), "<u4")
    header = np.zeros(256, "<i4")
    header[:3] = 20240801, 1, len(ids)
    (tmp_path / "train.bin").write_bytes(header.tobytes() + ids.tobytes())
    convert(tmp_path / "train.bin", tmp_path / "data", to="hvdlm", tokenizer=tmp_path / "tokenizer.json")
    assert [document.tolist() for document in documents_of(tmp_path / "data")] == documents


def test_costs_are_those_of_the_text(file):
    with_bos, without = make("bpe", path=file(BEFORE["llama"])), make("bpe", path=file(None))
    assert compare({"a": with_bos}, TEXTS) == compare({"a": without}, TEXTS)
    assert (show(with_bos, "ab")["bos_id"], show(without, "ab")["bos_id"]) == (with_bos.bos_id, None)
    assert show(with_bos, "ab")["ids"] == show(without, "ab")["ids"]


EOT, TURN = "<|end_of_text|>", "<|eot_id|>"


@pytest.mark.parametrize(
    ("tokens", "eos_token", "taken"),
    [
        ([EOT, TURN], TURN, EOT),  # a chat model's config names the end of a turn
        ([EOT, TURN], None, EOT),
        (["</s>", "<|im_end|>"], "<|im_end|>", "</s>"),
        (["<|endoftext|>", "</s>"], "</s>", "</s>"),  # both end texts, and the publisher says which
        (["<end>", TURN], "<end>", "<end>"),  # nothing else is known
        (["<end>", TURN], {"content": "<end>"}, "<end>"),
        (["</s>"], "<gone>", "</s>"),
        (["<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>"], "<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>"),
    ],
)
def test_which_of_several_ends_ends_documents(trained, tmp_path, caplog, tokens, eos_token, taken):
    text = json.dumps(trained).replace("<|endoftext|>", "<|x|>")
    content = json.loads(text)
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": 301 + number, "content": token} for number, token in enumerate(tokens)
    ]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    with caplog.at_level("INFO"):
        found = make("bpe", path=path)
    assert found.eos_id == 301 + tokens.index(taken) == from_json(found.to_json()).eos_id
    others = [token for token in tokens if token != taken]
    expected = f"documents end with {taken!r}; it also has {others[0]}" if others else ""
    assert expected in caplog.text and bool(others) == bool(caplog.text)
    caplog.clear()
    assert make("bpe", path=path, eos=tokens[-1]).eos_id == 300 + len(tokens) and not caplog.text


def test_the_added_tokens_of_a_rank_file_are_those_beside_it(tmp_path, caplog):
    path = write_many_ranks(tmp_path / "tiktoken.model", range(1000))
    beside = tmp_path / "tokenizer_config.json"
    names = {"1000": "[BOS]", "1001": "[EOS]", "1010": "<|im_end|>"}  # as Kimi's
    added = {number: {"content": name, "special": True} for number, name in names.items()}
    config = {"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "<|im_end|>"}

    def found(bos="auto", **changes):
        beside.write_text(json.dumps({**config, **changes}))
        tokenizer = make("tiktoken", path=path, pattern="gpt2", bos=bos)
        assert tokenizer.decode(tokenizer.encode_documents(["ab [BOS]"])[0]) == "ab [BOS]"
        return tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size

    assert found(add_bos_token=True) == (1000, 1001, 1011)
    assert found(add_bos_token=False) == found("none", add_bos_token=True) == (None, 1001, 1011)
    assert found() == found(add_bos_token=True, bos_token="[EOS]") == (None, 1001, 1011)
    assert found("[BOS]", add_bos_token=False) == (1000, 1001, 1011)
    assert found(added_tokens_decoder={}) == (None, 1000, 1001)
    with pytest.raises(UserError, match=r"\(\[BOS\], \[EOS\], <\|im_end\|>\); set tokenizer.bos: none"):
        found("<s>")
    for broken in ({"x": {"content": "a"}}, {"1": {}}, {"1": "a"}, ["a"]):
        with pytest.raises(UserError, match=r"tokenizer_config.json: is no tokenizer_config.json"):
            found(added_tokens_decoder=broken)
    beside.unlink()
    with caplog.at_level("INFO"):
        assert make("tiktoken", path=path, pattern="gpt2").eos_id == 1000
    assert "tiktoken.model: documents end with the id 1000" in caplog.text
