"""Many texts at once: what is written is what each would be alone and without any cache, for every family."""

import itertools
import random

import numpy as np
import pytest
import torch
from test_models import CONFIGS, VARIANTS

from hvdlm.inference import matrices
from hvdlm.inference.engine import CANCELLED, LENGTH, STOP, Engine, Request
from hvdlm.inference.sampling import Sampling
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.hmm import HmmConfig
from hvdlm.models.ngram import NgramConfig
from hvdlm.models.ngram.counts import adjusted_counts
from hvdlm.models.transformer import TransformerConfig

EOS = 49
VOCABULARY = Vocabulary(50, EOS)
CONTEXT = 24
GREEDY = Sampling(temperature=0)
FAMILIES = {f"{number}-{config.family}": config for number, config in enumerate(CONFIGS)}
FAMILIES |= {"hmm": HmmConfig(states=5, training="gradient"), "ngram": NgramConfig(order=3)}
FAMILIES["gqa-alibi"] = VARIANTS["alibi"].model_copy(update={"heads": 4, "kv_heads": 2, "width": 16})


def built(config):
    """A model that is sure of what it says, so that greedy ids do not hang on rounding."""
    model = build_model(config, VOCABULARY, seed=0)
    if config.family == "ngram":
        ids = torch.randint(0, EOS, (600,), generator=torch.Generator().manual_seed(0)).numpy()
        model.update(adjusted_counts(model.count(ids, np.array([EOS]))))
        return model
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * (1.0 if config.family in ("hmm", "maxent") else 0.4))
    return model


class Kept:
    """A listener that remembers all."""

    def __init__(self, is_enough=lambda choice, token: False):
        self.texts, self.reasons, self.prompt, self.is_cancelled = {}, {}, [], False
        self._is_enough = is_enough

    def read(self, tokens):
        self.prompt = tokens

    def take(self, choice, token):
        self.texts.setdefault(choice, []).append(token)
        return self._is_enough(choice, token)

    def end(self, choice, reason):
        assert choice not in self.reasons
        self.reasons[choice] = reason

    def ids(self, choice=0):
        return [token.id for token in self.texts.get(choice, [])]


def request_of(prompt, max_tokens=8, sampling=GREEDY, **options):
    return Request(tuple(prompt), max_tokens, sampling, **options)


def run(model, requests, **options):
    engine = Engine(model, VOCABULARY, **{"context": CONTEXT, **options})
    heard = [Kept() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        engine.add(request, listener)
    engine.run()
    return heard


def ids_written(model, vocabulary, prompt, sampling, *, max_tokens, context=None, slides=False):
    """Ids that continue a prompt, one text alone."""
    engine, heard = Engine(model, vocabulary, context=context, rows=1), Kept()
    ids = tuple(prompt) or (vocabulary.eos_id,)
    engine.add(Request(ids, max_tokens, sampling, frozenset({vocabulary.eos_id}), slides=slides), heard)
    engine.run()
    return heard.ids()


def prompts(num, most=CONTEXT - 8, seed=0):
    draw = random.Random(seed)
    return [[EOS, *(draw.randrange(EOS) for _ in range(draw.randrange(most)))] for _ in range(num)]


@torch.no_grad()
def uncached(model, prompt, written):
    """Log-probabilities of ids after a prompt, from all that stands before them, each time anew."""
    state = model.sampled_state(1, torch.Generator()) if model.draws_state else None
    ids = torch.tensor([[*prompt, *written]])
    if state is None:
        state = model.initial_state(1)
    logits, _ = model.logits(ids, state)
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_side_by_side_is_what_whole_texts_say(name):
    """Prompts of lengths 1 to the context, read in chunks of any size, in batches of any mixture (I1, I2, I3, I29)."""
    model = built(FAMILIES[name])
    if model.draws_state:
        model.sampled_state = lambda num, random: model.initial_state(num)
    given = [*prompts(7), [EOS], [EOS, *range(CONTEXT - 2)]]
    for rows, chunk in ((1, 256), (3, 5), (16, 1), (16, 256)):
        requests = [request_of(ids, logprobs=3) for ids in given]
        for prompt, heard in zip(given, run(model, requests, rows=rows, chunk=chunk), strict=True):
            written = heard.ids()
            assert len(written) == min(8, CONTEXT - len(prompt)) and heard.reasons == {0: LENGTH}
            expected = uncached(model, prompt, written)
            assert written == expected.argmax(-1).tolist()
            found = torch.tensor([[value for _, value in token.top] for token in heard.texts[0]])
            assert torch.allclose(found, expected.topk(3).values, atol=1e-5)
            own = torch.tensor([token.log_prob for token in heard.texts[0]])
            assert torch.allclose(own, expected.max(-1).values, atol=1e-5)


@pytest.mark.parametrize("encoder", [{}, {"positions": {"kind": "learned", "max_seq_len": 30}}, {"kv_heads": 1}])
def test_a_model_with_an_encoder_reads_each_prompt_as_its_source(encoder):
    config = TransformerConfig(layers=2, encoder_layers=2, heads=2, width=16, **encoder)
    model, given = built(config), prompts(6)
    for rows, chunk in ((1, 256), (4, 1), (16, 256)):
        requests = [request_of(ids, logprobs=0) for ids in given]
        for prompt, heard in zip(given, run(model, requests, rows=rows, chunk=chunk), strict=True):
            written = heard.ids()
            with torch.no_grad():
                start, _, state = model.prompted(torch.tensor([prompt]))
                ids = torch.cat((start, torch.tensor([written])), 1)
                expected = model.logits(ids, state)[0][0, :-1].log_softmax(-1)
            assert written == expected.argmax(-1).tolist() and len(written) == 8
            own = torch.tensor([token.log_prob for token in heard.texts[0]])
            assert torch.allclose(own, expected.max(-1).values, atol=1e-5)


SMALL = TransformerConfig(layers=1, heads=2, width=16)


@pytest.mark.parametrize("name", ["0-transformer", "ngram", f"{len(CONFIGS) - 2}-vae", "8-transformer"])
def test_a_text_does_not_depend_on_its_neighbours(name):
    """Nor on when it came: a seed's draws are its own (I6, I7)."""
    model, given = built(FAMILIES[name]), prompts(9)
    requests = [request_of(ids, 6, Sampling(temperature=1.0, seed=n), choices=1 + n % 3) for n, ids in enumerate(given)]
    alone = [run(model, [request])[0] for request in requests]
    together = run(model, requests, rows=5, chunk=3)
    assert [one.ids(0) for one in alone] == [one.ids(0) for one in together]
    assert [one.texts.keys() for one in together] == [set(range(request.choices)) for request in requests]
    assert [[one.ids(n) for n in range(3)] for one in alone] == [[one.ids(n) for n in range(3)] for one in together]
    assert together[2].ids(0) != together[2].ids(1)


def test_several_choices_read_their_prompt_once():
    model, prompt = built(SMALL), prompts(1)[0]
    engine = Engine(model, VOCABULARY, context=CONTEXT)
    heard = Kept()
    engine.add(request_of(prompt, 3, Sampling(temperature=1.0), choices=4), heard)
    engine.run()
    assert engine.counts.prompt_tokens == len(prompt) and engine.counts.written_tokens == 12
    assert heard.reasons == dict.fromkeys(range(4), LENGTH)


def test_any_of_several_ends_stops_a_text_and_is_no_part_of_it():
    model, prompt = built(SMALL), prompts(1)[0]
    whole = run(model, [request_of(prompt)])[0].ids()
    for place, token in enumerate(whole):
        if token in whole[:place]:
            continue
        (heard,) = run(model, [request_of(prompt, ends=frozenset({token, 48}))])
        assert heard.ids() == whole[:place] and heard.reasons == {0: STOP}


def test_a_listener_may_have_enough_and_rows_leave_without_touching_others():
    model, given = built(SMALL), prompts(5)
    whole = [heard.ids() for heard in run(model, [request_of(ids) for ids in given])]
    engine, heard = Engine(model, VOCABULARY, context=CONTEXT, rows=3), []
    for number, ids in enumerate(given):
        heard.append(Kept(lambda choice, token, most=1 + number: len(heard[most - 1].ids()) == most))
        engine.add(request_of(ids), heard[-1])
    engine.run()
    assert [one.ids() for one in heard] == [ids[: number + 1] for number, ids in enumerate(whole)]
    assert [one.reasons for one in heard] == [{0: STOP}] * 5 and engine.num_running == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
@pytest.mark.parametrize("choices", [1, 2])
def test_who_is_cancelled_leaves_at_once_waiting_reading_or_writing(steps, choices):
    model, given = built(SMALL), [[EOS] * 9, [EOS] * 5, [EOS] * 4]
    expected = run(model, [request_of(given[1])])[0].ids()
    engine, heard = Engine(model, VOCABULARY, context=CONTEXT, rows=3, chunk=4), [Kept() for _ in given]
    for ids, listener, num in zip(given, heard, (choices, 1, 2), strict=True):
        engine.add(request_of(ids, choices=num), listener)
    for _ in range(steps):
        engine.step()
    heard[0].is_cancelled = heard[2].is_cancelled = True
    engine.step()
    assert heard[0].reasons == dict.fromkeys(range(choices), CANCELLED)
    assert set(heard[2].reasons.values()) == {CANCELLED} and len(heard[2].reasons) == 2
    engine.run()
    assert heard[1].ids() == expected and (engine.num_running, engine.num_waiting) == (0, 0)
    engine.add(request_of(given[1], choices=3), again := Kept())  # no row is lost
    engine.run()
    assert [again.ids(n) for n in range(3)] == [expected] * 3


def test_a_long_prompt_holds_the_others_up_for_a_chunk_only():
    model = built(SMALL)
    engine, short, long = Engine(model, VOCABULARY, context=None, chunk=10), Kept(), Kept()
    engine.add(request_of([EOS], 50), short)
    engine.step()
    engine.add(request_of([EOS] * 100, 1), long)
    for written in range(3, 11):
        engine.step()
        assert len(short.ids()) == written and not long.ids()


@pytest.mark.parametrize("name", ["0-transformer", "1-transformer", "11-transformer"])
def test_a_full_context_ends_a_text_or_its_older_half_is_forgotten(name):
    model, prompt = built(FAMILIES[name]), prompts(1)[0]
    whole = run(model, [request_of(prompt, 40, slides=True)])[0]
    assert len(whole.ids()) == 40 and whole.reasons == {0: LENGTH}
    ended = run(model, [request_of(prompt, 40)])[0]
    assert len(prompt) + len(ended.ids()) == CONTEXT and ended.reasons == {0: LENGTH}
    ids = list(prompt)
    for token in whole.ids():
        expected = uncached(model, ids, [0])[0].argmax()
        assert token == expected
        ids.append(token)
        if len(ids) >= CONTEXT:
            ids = ids[-(CONTEXT // 2) :]


def test_an_echo_tells_what_the_prompt_was_worth_and_nothing_need_be_written():
    model = built(SMALL)
    for prompt, chunk in itertools.product([[EOS], [EOS, 3], prompts(1)[0]], (1, 3, 256)):
        (heard,) = run(model, [request_of(prompt, 0, echo=True, logprobs=2)], chunk=chunk)
        assert heard.texts == {} and heard.reasons == {0: LENGTH}
        assert [token.id for token in heard.prompt] == prompt and heard.prompt[0].log_prob is None
        expected = uncached(model, prompt[:1], prompt[1:]) if len(prompt) > 1 else torch.empty(0, 50)
        for token, row in zip(heard.prompt[1:], expected, strict=True):
            assert token.log_prob == pytest.approx(float(row[token.id]), abs=1e-5) and len(token.top) == 2


def test_log_probabilities_are_the_models_own_whatever_changes_the_draw():
    model, prompt = built(SMALL), prompts(1)[0]
    how = Sampling(temperature=0.3, top_k=3, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={3: 2.0}, seed=4)
    (heard,) = run(model, [request_of(prompt, sampling=how, logprobs=0)])
    expected = uncached(model, prompt, heard.ids())
    own = [float(row[token]) for row, token in zip(expected, heard.ids(), strict=True)]
    assert [token.log_prob for token in heard.texts[0]] == pytest.approx(own, abs=1e-5)


def test_what_stands_for_nothing_is_never_written():
    """Rows of a vocabulary that was rounded up, and the beginning of a text (I32)."""
    model = build_model(SMALL, Vocabulary(50, EOS), seed=0)
    with torch.no_grad():
        model.head.weight[40:] *= 100
    vocabulary = Vocabulary(48, 47, bos_id=41)
    for sampling in (GREEDY, Sampling(temperature=5.0)):
        engine, heard = Engine(model, vocabulary, context=None), Kept()
        engine.add(request_of([41, 3], 200, sampling), heard)
        engine.run()
        assert len(heard.ids()) == 200 and not {41, 48, 49} & set(heard.ids())


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (request_of([]), "no token"),
        (request_of([50]), "50 is no id of a vocabulary of 50"),
        (request_of([0] * (CONTEXT + 1)), f"{CONTEXT + 1} tokens, the model's context {CONTEXT}"),
        (request_of([0] * CONTEXT), "fill the model's context"),
        (request_of([0], choices=17), "17 texts"),
        (request_of([0], 0), "max_tokens: 0"),
        (request_of([0], sampling=Sampling(logit_bias={50: 1.0})), "logit_bias: 50"),
        (request_of([0] * CONTEXT, slides=True), ""),
        (request_of([0] * CONTEXT, 0, echo=True), ""),
    ],
)
def test_what_cannot_be_done_is_told_before(request_, fault):
    engine = Engine(built(SMALL), VOCABULARY, context=CONTEXT)
    assert fault in engine.fault(request_) and bool(fault) == bool(engine.fault(request_))
    if fault:
        with pytest.raises(ValueError, match=fault):
            engine.add(request_, Kept())


COUNTED = ("hmm", "ngram", "maxent")


@pytest.mark.parametrize("name", [name for name, config in FAMILIES.items() if config.family not in COUNTED])
def test_a_model_of_int8_writes_too_and_leaves_out_what_stands_for_nothing(name):
    model = build_model(FAMILIES[name], VOCABULARY, seed=0)
    matrices.quantize(model)
    engine, heard = Engine(model, Vocabulary(48, 47), context=None), Kept()
    engine.add(request_of([47, 3], 20, Sampling(temperature=5.0)), heard)
    engine.run()
    assert len(heard.ids()) == 20 and max(heard.ids()) < 48


def test_the_prompt_counts_for_the_repetition_penalty_but_the_end_of_text_before_it_does_not():
    model = build_model(SMALL, VOCABULARY, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
    for prompt, is_rare in (([EOS, 7], True), ([EOS, 8], False)):
        how = Sampling(temperature=0, repetition_penalty=2.0, logit_bias={7: 1.0, 9: 0.6, EOS: 0.55})
        (heard,) = run(model, [request_of(prompt, 1, how, ends=frozenset({EOS}))])
        assert heard.ids() == [9 if is_rare else 7]
    how = Sampling(temperature=0, repetition_penalty=2.0, logit_bias={9: 0.6, EOS: 1.0})
    assert run(model, [request_of([EOS, 7], 1, how, ends=frozenset({EOS}))])[0].reasons == {0: STOP}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["0-transformer", "gqa-alibi", "13-lstm"])
def test_what_is_kept_has_the_type_of_the_weights(name, dtype):
    """Keys of another type than the queries would read as nonsense, or not at all (I8)."""
    model = built(FAMILIES[name]).to(dtype)
    given = prompts(4)
    for prompt, heard in zip(given, run(model, [request_of(ids, 4, logprobs=0) for ids in given]), strict=True):
        expected = uncached(model, prompt, heard.ids())
        own = torch.tensor([token.log_prob for token in heard.texts[0]])
        chosen = expected.gather(1, torch.tensor(heard.ids()).unsqueeze(1))[:, 0]
        assert torch.allclose(own, chosen, atol=1e-4 if dtype == torch.float64 else 0.3)


def test_a_text_that_has_ended_is_computed_no_more():
    model, widths = built(SMALL), []
    slots = model.slots

    def watched(num):
        found = slots(num)
        read = found.read
        found.read = lambda first, ids, lengths: widths.append(len(ids)) or read(first, ids, lengths)
        return found

    model.slots = watched
    engine = Engine(model, VOCABULARY, context=None)
    for most in (2, 3, 5):
        engine.add(request_of([EOS], most), Kept())
    engine.run()
    assert widths == [3, 3, 2, 1, 1]  # the prompts give each text's first token
