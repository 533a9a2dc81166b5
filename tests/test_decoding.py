"""Greedy and beam search find what a search over plain lists finds, whatever else is in the batch."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hvdlm.decoding import Decoding, decode
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.convolutional import ConvConfig
from hvdlm.models.hmm import HmmConfig
from hvdlm.models.maxent import MaxentConfig
from hvdlm.models.min_gru import MinGruConfig
from hvdlm.models.ngram import NgramConfig
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.vae import VaeConfig

V, EOS = 6, 5
SHAPE = {"layers": 2, "width": 8}
LEARNED = {"kind": "learned", "max_seq_len": 24}
COUPLED = TransformerConfig(**SHAPE, heads=2, encoder_layers=1, positions=LEARNED)
CONFIGS = {
    "rotary": TransformerConfig(**SHAPE, heads=2, kv_heads=1),
    "learned": TransformerConfig(**SHAPE, heads=2, positions=LEARNED),
    "window": TransformerConfig(**SHAPE, heads=2, window=3),
    "encoder": COUPLED,
    "lstm": LstmConfig(**SHAPE),
    "gru": GruConfig(**SHAPE),
    "rnn": RnnConfig(**SHAPE),
    "mingru": MinGruConfig(**SHAPE),
    "conv": ConvConfig(**SHAPE),
    "hmm": HmmConfig(states=4),
    "ngram": NgramConfig(order=3),
    "maxent": MaxentConfig(order=3, buckets=8),
    "vae": VaeConfig(**SHAPE, latent=2),
    "vae-transformer": VaeConfig(**SHAPE, latent=2, heads=2, decoder="transformer"),
}


@pytest.fixture(autouse=True)
def one_thread():
    """For tensors so small that threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(config):
    """A model with an opinion."""
    model = build_model(config, Vocabulary(V, EOS), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    return built(request.param)


def prompts(num, longest=5):
    """Ids, of which the shortest prompt has one, and lengths; anything stands behind them."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1 + row * (longest - 1) // (num - 1) for row in range(num)]).flip(0).roll(1)
    return torch.randint(V, (num, longest), generator=random), lengths


@torch.no_grad()
def log_probs_of(model, prompt, written):
    """Of each next id (V,), all read anew."""
    if model.reads_source:
        ids, state = torch.tensor([[model.start_id, *written]]), model.encode(torch.tensor([prompt]))
    else:
        ids, state = torch.tensor([[*prompt, *written]]), model.initial_state(1)
    return model.logits(ids, state)[0][0, -1].double().log_softmax(-1).tolist()


def plain_search(model, prompt, how):
    """(score, ids, log_prob) of each hypothesis; without an early end, which must not change the best."""
    alive, found = [(0.0, [])], []
    for length in range(1, how.max_tokens + 1):
        nexts = [
            (log_prob + more, [*written, token])
            for log_prob, written in alive
            for token, more in enumerate(log_probs_of(model, prompt, written))
            if token not in how.never and (token != EOS or len(written) >= how.min_tokens)
        ]
        nexts = sorted(nexts, key=lambda one: -one[0])[: how.beams - len(found)]
        closed = [one for one in nexts if one[1][-1] == EOS or length == how.max_tokens]
        found += [(log_prob / length**how.length_penalty, ids, log_prob) for log_prob, ids in closed]
        alive = [one for one in nexts if one not in closed]
    return sorted(found, reverse=True)


def in_full(hypothesis):
    return [*hypothesis.ids, *([EOS] if hypothesis.ended else [])]


def equals(found, expected):
    return in_full(found) == expected[1] and (found.score, found.log_prob) == pytest.approx(
        (expected[0], expected[2]), abs=1e-4
    )


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("family", ["learned", "encoder", "lstm"])
def test_with_beams_enough_the_best_of_all_sequences_is_found(family, penalty):
    """Of three ids that may be written and the end of text: four tokens at most."""
    model, how = built(CONFIGS[family]), Decoding(4, EOS, beams=700, length_penalty=penalty, never=(0, 1))
    ids, lengths = prompts(2, 3)
    for row, found in enumerate(decode(model, ids, lengths, how)):
        prompt, everything = ids[row, : lengths[row]].tolist(), []
        known = {}
        for length in range(1, 5):
            for body in itertools.product((2, 3, 4), repeat=length - 1):
                known[body] = log_probs_of(model, prompt, list(body))
                before = sum(known[body[:place]][token] for place, token in enumerate(body))
                for token in (2, 3, 4, EOS) if length == 4 else (EOS,):
                    log_prob = before + known[body][token]
                    everything.append((log_prob / length**penalty, [*body, token], log_prob))
        everything.sort(reverse=True)
        assert equals(found[0], everything[0])
        assert [hypothesis.score for hypothesis in found] == sorted((one.score for one in found), reverse=True)
        place = {tuple(ids): (score, ids, log_prob) for score, ids, log_prob in everything}
        assert all(equals(one, place[tuple(in_full(one))]) for one in found)
        assert len({tuple(in_full(one)) for one in found}) == len(found)


@pytest.mark.parametrize("beams", [1, 3])
def test_every_family_is_searched_as_plain_lists_are(model, beams):
    """Prompts of all lengths at once, with padding, against one at a time that is read anew for each token."""
    ids, lengths = prompts(4)
    how = Decoding(7, EOS, beams=beams, length_penalty=0.8, never=(2,), min_tokens=2)
    for row, found in enumerate(decode(model, ids, lengths, how)):
        expected = plain_search(model, ids[row, : lengths[row]].tolist(), how)
        assert equals(found[0], expected[0])
        assert len(found) <= beams and all(2 not in one.ids and len(one.ids) >= 2 for one in found)


def test_one_beam_takes_the_likeliest_each_time(model):
    ids, lengths = prompts(4)
    for row, (found,) in enumerate(decode(model, ids, lengths, Decoding(9, EOS))):
        prompt, written = ids[row, : lengths[row]].tolist(), []
        while EOS not in written and len(written) < 9:
            log_probs = log_probs_of(model, prompt, written)
            written.append(log_probs.index(max(log_probs)))
        assert in_full(found) == written
        assert found.ended == (EOS in written)


def test_a_result_depends_on_no_other_prompt_nor_on_padding(model):
    """Alone, in another order, behind longer padding."""
    ids, lengths = prompts(6)
    how = Decoding(8, EOS, beams=4, length_penalty=1.0)
    together = decode(model, ids, lengths, how)
    order = [4, 1, 5, 0, 3, 2]
    padded = F.pad(ids, (0, 3), value=EOS)[order]
    mixed = decode(model, padded, lengths[order], how)
    for place, row in enumerate(order):
        (alone,) = decode(model, ids[row : row + 1, : lengths[row]], None, how)
        for other in (alone, mixed[place]):
            assert [one.ids for one in other] == [one.ids for one in together[row]]
            assert [one.score for one in other] == pytest.approx([one.score for one in together[row]], abs=1e-4)


class Fixed(torch.nn.Module):
    """Steps of a model whose next token has these log-probabilities, whatever came before; counts them."""

    reads_source, device = False, torch.device("cpu")

    def __init__(self, *probabilities):
        super().__init__()
        self.logits, self.steps, self.head = torch.tensor(probabilities).log(), 0, torch.nn.Identity()

    def prompted(self, ids, lengths):
        return ids, torch.ones(len(ids), dtype=torch.int64) if lengths is None else lengths, ()

    def forward(self, ids, state):
        self.steps += 1
        return self.logits.expand(*ids.shape, -1), state


START = torch.zeros(2, 1, dtype=torch.int64)


def test_a_score_counts_the_end_of_text():
    (found, *_), _ = decode(Fixed(0.4, 0.6), START, None, Decoding(5, eos_id=1, length_penalty=2.0, min_tokens=1))
    assert found.ids == [0] and found.ended
    assert found.log_prob == pytest.approx(math.log(0.4 * 0.6), abs=1e-6)
    assert found.score == pytest.approx(math.log(0.4 * 0.6) / 2**2, abs=1e-6)


def test_the_search_ends_as_soon_as_nothing_open_can_win_and_no_sooner():
    """One beam ends at once, with log 0.4. The other writes n zeros: it may win while n log 0.6 / 16^a is above."""
    for penalty in (0.0, 0.3, 0.5):
        model = Fixed(0.6, 0.4)
        (found,), _ = decode(model, START, None, Decoding(16, eos_id=1, beams=2, length_penalty=penalty))
        assert found.ids == [] and found.score == pytest.approx(math.log(0.4))
        assert model.steps == math.ceil(16**penalty * math.log(0.4) / math.log(0.6))  # 2, 5, 8
    model = Fixed(0.6, 0.4)
    found = decode(model, START, None, Decoding(16, eos_id=1, beams=2, length_penalty=1.0))[0]
    assert [one.ids for one in found] == [[0] * 16, []] and model.steps == 16


def test_ids_that_are_never_written_and_a_least_length():
    model = Fixed(0.1, 0.2, 0.3, 0.4)
    (found,), _ = decode(model, START, None, Decoding(4, eos_id=1, never=(2, 3), min_tokens=2))
    assert found.ids == [0, 0] and found.ended
    (found,), _ = decode(model, START, None, Decoding(4, eos_id=0, never=(3,)))
    assert found.ids == [2] * 4 and not found.ended


def test_what_cannot_be_searched_is_said():
    with pytest.raises(UserError, match="not finite: it has diverged"):
        decode(Fixed(math.nan, 1.0), START, None, Decoding(3, eos_id=1))
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        decode(Fixed(0.5, 0.5), START, torch.tensor([1, 0]), Decoding(3, eos_id=1))
    for wrong in ({"beams": 0}, {"max_tokens": 0}, {"length_penalty": -1.0}):
        with pytest.raises(ValueError, match="1 or more"):
            Decoding(**{"max_tokens": 3, "eos_id": 1, **wrong})
    with pytest.raises(UserError, match="cannot continue a text"):
        decode(built(LstmConfig(**SHAPE, bidirectional=True)), START, None, Decoding(3, eos_id=1))
    with pytest.raises(UserError, match="longer than the 24 learned positions"):
        decode(built(CONFIGS["learned"]), START, None, Decoding(30, eos_id=1, never=(1,)))


def test_an_encoder_and_a_decoder_reverse_six_digits_without_a_mistake():
    """400 steps of plain torch; then 300 strings drawn anew, written freely, each digit and the end right."""
    random = torch.Generator().manual_seed(0)
    positions = {"kind": "learned", "max_seq_len": 8}
    config = TransformerConfig(layers=1, encoder_layers=1, heads=2, width=32, positions=positions)
    model = build_model(config, Vocabulary(11, 10), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 50) * (1 - step / 400)
        source = torch.randint(10, (64, 6), generator=random)
        targets = F.pad(source.flip(1), (0, 1), value=10)
        logits, _ = model.logits(model.decoder_inputs(targets), model.encode(source))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(10, (300, 6), generator=random)
    for beams in (1, 4):
        found = decode(model, source, None, Decoding(8, eos_id=10, beams=beams))
        assert [hypotheses[0].ids for hypotheses in found] == source.flip(1).tolist()
        assert all(hypotheses[0].ended for hypotheses in found)


def test_any_of_several_ends_ends_a_text():
    model = build_model(TransformerConfig(layers=1, heads=2, width=16), Vocabulary(50, 49), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    ids = torch.tensor([[49, 3]])
    (whole,) = decode(model, ids, None, Decoding(8, 49))
    end = whole[0].ids[3]
    (found,) = decode(model, ids, None, Decoding(8, 49, other_ends=(end,)))
    assert found[0].ids == whole[0].ids[: whole[0].ids.index(end)] and found[0].ended
    (late,) = decode(model, ids, None, Decoding(8, 49, other_ends=(end,), min_tokens=6))
    assert end not in late[0].ids[:6] and len(late[0].ids) >= 6
