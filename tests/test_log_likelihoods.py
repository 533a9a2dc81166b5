"""How likely texts are: the numbers of whole texts read alone, whatever is computed beside them, by any ranks."""

import random
from types import SimpleNamespace

import pytest
import torch
from harness import preprocess, run_training
from labelled import make_data, run_of
from test_engine import CONTEXT, EOS, FAMILIES, VOCABULARY, built, prompts

from hvdlm.errors import UserError
from hvdlm.inference import log_likelihoods
from hvdlm.inference.answers import Answers, Ranks, Worker
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.generate import Texts, continue_text
from hvdlm.inference.load import load_checkpoint_model, tokenizer_of
from hvdlm.inference.log_likelihoods import Stretch, batches, check_scores, encode_pair, score, stretches
from hvdlm.inference.sampling import Sampling
from hvdlm.models import Vocabulary
from hvdlm.tokenizer import train_bpe
from hvdlm.train.setup import train
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

WRITABLE = {name: config for name, config in FAMILIES.items() if not built(config).draws_state}
CHOICES = [("ab cd", " ef"), ("ab cd", " gh"), ("", "ab"), ("ab cd ", "ef"), ("x" * 50, "y"), ("q", "é" * 30)]


def loaded_of(name):
    config = FAMILIES[name]
    settings = SimpleNamespace(
        train=SimpleNamespace(precision="fp32"), model=config, data=SimpleNamespace(seq_len=CONTEXT)
    )
    return SimpleNamespace(model=built(config), vocabulary=VOCABULARY, config=settings)


def asked_of(num):
    draw = random.Random(0)
    given = [ids for ids in prompts(num, most=CONTEXT + 1) if len(ids) > 1]
    return [Stretch(tuple(ids), draw.randrange(1, len(ids))) for ids in given]


@torch.no_grad()
def alone(loaded, stretch):
    """Log-probability and greediness of one text, from all its logits at once."""
    state = loaded.model.initial_state(1)
    logits, _ = loaded.model.logits(torch.tensor([stretch.ids[:-1]]), state)
    log_probs, targets = (
        logits[0].float().log_softmax(-1)[-stretch.num :],
        torch.tensor(stretch.ids[-stretch.num :]),
    )
    is_greedy = bool((log_probs.argmax(-1) == targets).all())
    return float(log_probs.gather(1, targets.unsqueeze(1)).sum()), is_greedy


@pytest.mark.parametrize("name", WRITABLE)
def test_scores_side_by_side_are_those_of_each_text_alone(name):
    """For every family, in batches of 1 and of 30 of mixed lengths (I27, I29)."""
    loaded, asked = loaded_of(name), asked_of(30)
    together = score(loaded, asked)
    for stretch, found in zip(asked, together, strict=True):
        (single,) = score(loaded, [stretch])
        expected, is_greedy = alone(loaded, stretch)
        assert found.log_prob == pytest.approx(expected, abs=2e-4) == single.log_prob
        assert found.is_greedy == is_greedy == single.is_greedy


def test_what_the_model_writes_by_itself_is_greedy():
    loaded = loaded_of("0-transformer")
    ids = [EOS]
    for _ in range(6):
        ids.append(int(loaded.model.logits(torch.tensor([ids]))[0][0, -1].argmax()))
    assert score(loaded, [Stretch(tuple(ids), 6)])[0].is_greedy
    ids[3] = (ids[3] + 1) % EOS
    assert not score(loaded, [Stretch(tuple(ids), 6)])[0].is_greedy
    last = Stretch(tuple(ids), 1)
    (found,) = score(loaded, [last])
    assert (found.log_prob, found.is_greedy) == pytest.approx(alone(loaded, last), abs=1e-4)


@pytest.mark.parametrize("name", [name for name, config in WRITABLE.items() if config.carries_state])
def test_a_text_longer_than_a_batch_is_read_in_pieces_with_its_state(name, monkeypatch):
    loaded, asked = (
        loaded_of(name),
        [Stretch((EOS, *range(20), *range(20)), 33), Stretch((EOS, *range(30)), 2)],
    )
    whole = score(loaded, asked)
    monkeypatch.setattr(log_likelihoods, "BATCH_TOKENS", 14)  # 7 columns of two rows
    monkeypatch.setattr(log_likelihoods, "HEAD_TOKENS", 3)
    assert [one.log_prob for one in score(loaded, asked)] == pytest.approx([one.log_prob for one in whole], abs=2e-4)


def test_choices_of_one_token_share_one_reading(monkeypatch):
    loaded, before = loaded_of("0-transformer"), (EOS, 1, 2, 3)
    asked = [Stretch((*before, choice), 1) for choice in range(4)] + [Stretch((EOS, 5), 1)]
    shapes, forward = [], loaded.model.forward
    monkeypatch.setattr(
        loaded.model, "forward", lambda ids, *rest: shapes.append(tuple(ids.shape)) or forward(ids, *rest)
    )
    found = score(loaded, asked)
    assert shapes == [(2, 4)]
    assert sum(torch.tensor([one.log_prob for one in found[:4]]).exp()) < 1
    assert len({one.log_prob for one in found}) == 5
    assert batches(asked, most_tokens=4) == [[0, 1, 2, 3], [4]]


def test_batches_hold_each_stretch_once_and_no_more_than_their_tokens():
    asked = asked_of(60)
    found = batches(asked, most_tokens=100)
    assert sorted(number for group in found for number in group) == list(range(len(asked)))
    for group in found:
        readings = {asked[number].inputs for number in group}
        assert len(readings) == 1 or len(readings) * max(map(len, readings)) <= 100
    assert len(found) < 20


@pytest.mark.parametrize("context", [1, 2, 3, 8, None])
@pytest.mark.parametrize("num_before", [1, 4])
def test_windows_predict_each_token_once_with_as_much_past_as_there_is_room_for(context, num_before):
    for num in range(1, 20):
        before, ids = list(range(-num_before, 0)), list(range(num))
        found = stretches(before, ids, context)
        assert [token for stretch in found for token in stretch.ids[-stretch.num :]] == ids
        whole = [*before, *ids]
        for stretch in found:
            place = whole.index(stretch.ids[0])
            assert list(stretch.ids) == whole[place : place + len(stretch.ids)]
            assert context is None or len(stretch.inputs) == min(context, num_before + num - 1, len(stretch.inputs))
        if context is not None and num_before + num - 1 >= context:
            assert {len(stretch.inputs) for stretch in found} == {context}
        else:
            assert found == [Stretch(tuple(whole), num)]


def test_a_pair_is_encoded_as_a_whole_and_spaces_belong_to_what_follows():
    """I28: with a vocabulary in which a word has its space before it."""
    tokenizer = train_bpe(["the cat sat on the mat the cat"] * 50, 280)

    def encode(text):
        return tuple(tokenizer.encode(text).tolist())

    assert encode("the cat") != (*encode("the "), *encode("cat"))
    for context, continuation in (("the", " cat"), ("the ", "cat"), ("the cat \n", "sat"), ("", "the"), ("  ", "cat")):
        before, after = encode_pair(encode, context, continuation)
        assert (*before, *after) == encode(context + continuation)
        assert before == (encode(context.rstrip()) if context.rstrip() else ())
    assert encode_pair(encode, "the", " cat") == encode_pair(encode, "the ", "cat")


@pytest.fixture(scope="module")
def run(made_once):
    """A run over one document of three windows, of bytes."""

    def make(folder):
        (folder / "text.txt").write_text("the cat sat on the mat; " * 4)
        preprocess(folder / "text.txt", folder / "data", split={"val": 0.0})
        run_training(folder / "data", folder / "run", "train.steps=5")

    return made_once("one-document", make)


def worker_of(run):
    path = next((run / "run" / "checkpoints").glob("step_*"))
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    return Worker(loaded, tokenizer_of(path, loaded.state))


def asked_at(run, size, ask):
    """What rank 0 of `size` is answered."""

    def on_rank(world):
        torch.set_num_threads(1)
        worker = worker_of(run)
        ranks = Ranks(world, worker)
        if world.rank:
            return ranks.follow()
        answers = Answers(ranks, worker, "run")
        found = ask(answers)
        ranks.dismiss()
        return found, answers

    return run_on_threads(size, on_rank)[0]


def test_a_whole_text_has_the_log_likelihood_of_hvdlm_eval(run):
    """I27: the windows of both are the same where the text fills them; hvdlm eval asks for its end too."""
    text = (run / "text.txt").read_text()
    assert len(text) == 96
    found = evaluate_checkpoint(run / "run", (), "train", SerialWorld())
    assert found["num_tokens"] == 97
    worker = worker_of(run)
    end = worker.score([Stretch((text.encode()[-1], worker.loaded.vocabulary.eos_id), 1)])[0].log_prob
    ((rolled,), answers) = asked_at(run, 1, lambda answers: answers.rolling([text]))
    assert -(rolled + end) == pytest.approx(found["loss"] * 97, rel=1e-6)
    ((once, twice), _) = asked_at(
        run, 1, lambda answers: answers.log_likelihoods([("", text[:32]), (text[:7], text[7:32])])
    )
    assert answers.counts["whole_texts"] == 1 and answers.rolling([""]) == [0.0]
    first = worker.score([Stretch((256, *text[:7].encode()), 7)])[0].log_prob
    assert once.log_prob == pytest.approx(twice.log_prob + first, abs=1e-4)


def test_answers_are_equal_at_any_number_of_ranks_and_in_the_order_of_the_questions(run, monkeypatch):
    monkeypatch.setattr("hvdlm.inference.answers.PROMPTS", 2)
    monkeypatch.setattr("hvdlm.inference.log_likelihoods.batches.__defaults__", (40,))
    settings = {"until": ["e"], "max_gen_toks": 9, "do_sample": True, "temperature": 1.0, "num_beams": 1}
    questions = [("ab" * num, settings) for num in range(7)]

    def ask(answers):
        return answers.log_likelihoods(CHOICES), answers.written(questions), answers.rolling(["ab" * 60, "c", ""])

    (scores, texts, rolled), answers = asked_at(run, 1, ask)
    assert answers.counts["cut"] == 2 and answers.ignored == {"num_beams"}
    assert [asked_at(run, size, ask)[0] for size in (2, 3)] == [(scores, texts, rolled)] * 2
    assert scores[0] != scores[1] and scores[0] == scores[3]
    alone = [asked_at(run, 1, lambda answers, pair=pair: answers.log_likelihoods([pair]))[0][0] for pair in CHOICES]
    assert [one.log_prob for one in alone] == pytest.approx([one.log_prob for one in scores], abs=1e-4)
    assert len(set(texts)) > 3 and not any("e" in text for text in texts) and rolled[2] == 0.0


def test_a_text_is_greedy_and_ends_where_a_task_says(run):
    ask = [("ab", {}), ("ab", {"max_gen_toks": 3}), ("ab", {"until": "\n", "temperature": 0.0, "max_tokens": 3})]
    (texts, _) = asked_at(run, 1, lambda answers: answers.written([*ask, ("ab" * 100, {"max_gen_toks": 1000})]))
    assert texts[0].startswith(texts[1]) and len(texts[1]) <= 3 and len(texts[0]) > 3
    assert texts[1].startswith(texts[2])
    with pytest.raises(UserError, match="generation_kwargs: top_p: 2 is not from 0 to 1"):
        asked_at(run, 1, lambda answers: answers.written([("ab", {"top_p": 2})]))


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_one_rank_is_everybodys(run, monkeypatch, faulty):
    def on_rank(world):
        worker = worker_of(run)
        if world.rank == faulty:
            worker.score = lambda part: (_ for _ in ()).throw(UserError("the model has diverged"))
        ranks = Ranks(world, worker)
        try:
            return Answers(ranks, worker, "run").log_likelihoods(CHOICES) if world.rank == 0 else ranks.follow()
        except UserError as error:
            return error.on_all_ranks, str(error)

    monkeypatch.setattr("hvdlm.inference.log_likelihoods.batches.__defaults__", (40,))
    assert run_on_threads(2, on_rank) == [(True, "the model has diverged")] * 2


@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_a_model_of_pairs_writes_to_its_sources_but_scores_no_text(encoder_layers, tmp_path):
    model = {"family": "transformer", "layers": 1, "heads": 2, "width": 8, "encoder_layers": encoder_layers}
    data = make_data(tmp_path, SerialWorld())
    settings = run_of(data, tmp_path / "run", "train.steps=3", model=model, task={"kind": "seq2seq", "language": "en"})
    train(settings, SerialWorld())
    sources = ["w1 w2 w3", "w4", " ".join(["w5"] * 100)]
    (texts, answers) = asked_at(
        tmp_path, 1, lambda answers: answers.written([(one, {"max_gen_toks": 5}) for one in sources])
    )
    assert answers.counts["cut"] == 1
    greedy = Texts(Sampling(temperature=0), 5)
    assert texts[:2] == ["".join(continue_text(tmp_path / "run", (), one, greedy)) for one in sources[:2]]
    with pytest.raises(UserError, match="run: task: seq2seq does not tell how likely"):
        asked_at(tmp_path, 1, lambda answers: answers.rolling(["w1"]))


def test_a_model_that_has_no_probability_of_a_token_is_refused():
    for predicts_text, draws_state in ((False, False), (True, True)):
        task = SimpleNamespace(predicts_text=predicts_text)
        config = SimpleNamespace(task=SimpleNamespace(kind="elbo"))
        loaded = SimpleNamespace(task=task, model=SimpleNamespace(draws_state=draws_state), config=config)
        with pytest.raises(UserError, match="run: task: elbo does not tell how likely each token"):
            check_scores(loaded, "run")


def test_the_likeliest_that_could_be_written_leaves_out_what_stands_for_nothing():
    loaded = loaded_of("0-transformer")
    logits = loaded.model.logits(torch.tensor([[0]]))[0][0, -1]
    with torch.no_grad():
        direction = loaded.model(torch.tensor([[0]]))[0][0, -1]
        loaded.model.head.weight[49] = 1e3 * direction  # the likeliest by far, and no id
    likeliest = int(logits[:48].argmax())
    loaded.vocabulary = Vocabulary(48, 47)
    (found,) = score(loaded, [Stretch((0, likeliest), 1)])
    assert found.is_greedy
