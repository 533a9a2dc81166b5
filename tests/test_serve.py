"""`hvdlm serve`: what OpenAI's client expects, and what a server must not do to others."""

import asyncio
import json
import math
import re
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import preprocess_values, run_training
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import until

pytest.importorskip("starlette", reason="starlette (the serve extra) is not installed")
pytest.importorskip("uvicorn", reason="uvicorn (the serve extra) is not installed")
openai = pytest.importorskip("openai", reason="openai (the test extra) is not installed")

from labelled import make_data, run_of  # noqa: E402
from serving import opened, running  # noqa: E402

from hvdlm.config import validate  # noqa: E402
from hvdlm.errors import StoppedOnRequest, UserError  # noqa: E402
from hvdlm.inference.engine import CANCELLED, Engine  # noqa: E402
from hvdlm.inference.evaluate import evaluate_checkpoint  # noqa: E402
from hvdlm.preprocessing.build import build  # noqa: E402
from hvdlm.preprocessing.plan import PreprocessConfig  # noqa: E402
from hvdlm.serve import connections, writing  # noqa: E402
from hvdlm.serve.faults import Fault  # noqa: E402
from hvdlm.serve.requests import NOT_OFFERED, PASSED_OVER, ChatRequest, CompletionRequest, parse  # noqa: E402
from hvdlm.serve.serving import (  # noqa: E402
    LAST_WORDS_S,
    Address,
    Ending,
    Offer,
    _drain,
    announce,
    names_of,
    open_service,
    outcome,
    serve,
)
from hvdlm.serve.writing import ERROR  # noqa: E402
from hvdlm.session.stop import BatchJob  # noqa: E402
from hvdlm.train.setup import train  # noqa: E402
from hvdlm.world.serial import SerialWorld  # noqa: E402

CONTEXT = 128
# Minutes of work for one row, so that it is there until it is cancelled.
LONG = {"prompt": "a", "max_tokens": 4000, "slide": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    run_training(data_dir, folder, "train.steps=30", f"data.seq_len={CONTEXT}", "train.eval_every=30")
    return folder


@pytest.fixture(scope="module")
def served(run):
    with running(opened(run, rows=4, queue=2)) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture
def idle(served):
    until(served.is_free, 10)
    yield served
    until(served.is_free, 10)


# --- What is asked for


def asked_of(service, **fields):
    """The engine's request for a client's."""
    kind = ChatRequest if "messages" in fields else CompletionRequest
    request = parse(kind, json.dumps(fields).encode())
    service.check_model(request.model)
    (writing,) = service.writings(request, service.prompts(request), lambda piece: None)
    assert service.worker._engine.fault(writing.request) == "", "what is let through can be done"
    return writing.request


EVERY_FIELD = {
    "model": ("tiny", lambda r: True),
    "max_tokens": (7, lambda r: r.max_tokens == 7),
    "temperature": (0, lambda r: r.sampling.temperature == 0),
    "top_p": (0, lambda r: r.sampling.top_p == 0),
    "n": (3, lambda r: r.choices == 3),
    "stop": (["a", "b"], lambda r: True),  # of the text, not of the engine: tested below
    "seed": (-5, lambda r: r.sampling.seed == -5),
    "stream": (True, lambda r: True),
    "stream_options": ({"include_usage": True}, lambda r: True),
    "presence_penalty": (-1.5, lambda r: r.sampling.presence_penalty == -1.5),
    "frequency_penalty": (1.5, lambda r: r.sampling.frequency_penalty == 1.5),
    "logit_bias": ({"97": -100}, lambda r: r.sampling.logit_bias == {97: -100.0}),
    "top_k": (-1, lambda r: r.sampling.top_k == 0),
    "min_p": (0.25, lambda r: r.sampling.min_p == 0.25),
    "repetition_penalty": (1.25, lambda r: r.sampling.repetition_penalty == 1.25),
    "ignore_eos": (True, lambda r: not r.ends),
    "slide": (True, lambda r: r.slides),
    "prompt": ([[97, 98]], lambda r: r.prompt == (97, 98)),
    "logprobs": (0, lambda r: r.logprobs == 0),
    "echo": (True, lambda r: True),
    "best_of": (1, lambda r: True),
}
OF_CHAT = {
    "messages": ([{"role": "user", "content": "ab"}], lambda r: r.prompt[-2:] == (97, 98)),
    "max_completion_tokens": (9, lambda r: r.max_tokens == 9),
    "logprobs": (True, lambda r: r.logprobs == 0),
    "top_logprobs": (5, lambda r: r.logprobs == 5),
}


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_every_field_reaches_the_engine(served, kind):
    fields = EVERY_FIELD | (OF_CHAT if kind is ChatRequest else {})
    needed = {"prompt": "x"} if kind is CompletionRequest else {"messages": [{"role": "user", "content": "x"}]}
    needs = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}
    for name in kind.model_fields:
        value, is_so = fields[name]
        assert is_so(asked_of(served.service, **needed | needs.get(name, {}) | {name: value})), name


def test_unsaid_is_the_default_and_null_is_unsaid(served):
    defaults = served.service.defaults
    for fields in ({}, dict.fromkeys(set(EVERY_FIELD) - {"prompt"})):
        found = asked_of(served.service, prompt="x", **fields)
        assert found.max_tokens == defaults["max_tokens"] and found.choices == 1 and found.logprobs is None
        assert found.sampling.temperature == defaults["temperature"] and found.sampling.top_k == 0
    seeds = {asked_of(served.service, prompt="x").sampling.seed for _ in range(3)}
    assert len(seeds) == 3
    assert asked_of(served.service, **LONG | {"max_tokens": 1}).max_tokens == 1
    newer = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "max_completion_tokens": 6}
    assert asked_of(served.service, **newer).max_tokens == 6


LIBRARY_S = re.compile("[Ii]nput|[Vv]alid|required|Python")  # words of pydantic, not of ours
WRONG = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop": list("abcde")}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": "a" * 201}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"97": 101}}, "logit_bias"),
    ({"logit_bias": {"70000": 1}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"max_toke": 1}, "max_toke"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [70000]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "a" * 1_000_001}, "prompt"),
    ({"prompt": ["a"] * 7}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
]
WRONG_CHAT = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a"}] * 501}, "messages"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"audio": {}}, "audio"),
]


@pytest.mark.parametrize(("fields", "param"), [*WRONG, *WRONG_CHAT])
def test_what_cannot_be_is_refused_by_its_name(served, fields, param):
    needed = {"messages": [{"role": "user", "content": "x"}]} if (fields, param) in WRONG_CHAT else {"prompt": "x"}
    with pytest.raises(Fault) as caught:
        asked_of(served.service, **needed | fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message
    assert not LIBRARY_S.search(caught.value.message)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*EVERY_FIELD, *OF_CHAT, *NOT_OFFERED, *PASSED_OVER, "more"]), ANYTHING)
def test_whatever_a_field_holds_is_a_request_or_a_fault_that_names_it(served, name, value):
    for needed in ({"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
        try:
            asked_of(served.service, **needed | {name: value})
        except Fault as fault:
            assert fault.status in (400, 404) and (fault.param or "").startswith(name)
            assert not LIBRARY_S.search(fault.message)


def test_what_asks_for_nothing_is_passed_over(served):
    fields = {"user": "me", "tools": [], "suffix": None, "response_format": {"type": "text"}, "metadata": {"a": "b"}}
    assert asked_of(served.service, prompt="x", **fields)


# --- What is answered


def test_the_client_reads_a_completion(client):
    found = client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=5, n=2, seed=1, temperature=0.7)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.object == "text_completion" and found.model == "tiny" and "float32" in found.system_fingerprint
    assert {choice.finish_reason for choice in found.choices} <= {"length", "stop"}
    assert found.usage.prompt_tokens == 6 and found.usage.total_tokens == 6 + found.usage.completion_tokens
    again = client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=5, n=2, seed=1, temperature=0.7)
    assert [choice.text for choice in again.choices] == [choice.text for choice in found.choices]


def test_the_client_reads_a_chat(client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    found = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=4, logprobs=True)
    (choice,) = found.choices
    assert found.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop") and len(choice.logprobs.content) <= 4
    assert all(one.logprob <= 0 for one in choice.logprobs.content)


def test_the_client_reads_streams(client):
    messages = [{"role": "user", "content": "ab"}]
    asked = {"model": "tiny", "max_tokens": 6, "seed": 1, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(messages=messages, **asked, logprobs=True, top_logprobs=2)
    assert last.choices == [] and last.usage.completion_tokens <= 6
    told = [one for chunk in chunks[1:] for one in chunk.choices[0].logprobs.content]
    assert all(len(one.top_logprobs) == 2 for one in told)
    *chunks, last = client.completions.create(prompt="ab", **asked)
    assert last.usage.prompt_tokens == 3
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_a_stream_has_openai_s_order(served):
    asked = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 6, "n": 2}
    events = served.events("/v1/chat/completions", **asked, stream_options={"include_usage": True})
    *chunks, usage, done = events
    assert done == "data: [DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in [*chunks, usage]} == {
        (chunks[0]["id"], chunks[0]["created"], "tiny", "chat.completion.chunk")
    }
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["delta"] == {} and own[-1]["finish_reason"] in ("length", "stop")
        assert all(one["finish_reason"] is None and "role" not in one["delta"] for one in own[1:-1])


def test_without_being_asked_a_stream_has_no_usage(served):
    *chunks, _ = served.events("/v1/completions", prompt="ab", max_tokens=2)
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)


def test_pieces_of_a_stream_are_the_whole_text(served):
    """Of a byte vocabulary at a high temperature: broken characters all over."""
    asked = {"prompt": "中文 😀", "max_tokens": 60, "temperature": 2, "seed": 3, "stop": ["e ", "t "], "logprobs": 2}
    whole = served.complete(**asked)["choices"][0]
    *chunks, _ = served.events("/v1/completions", **asked)
    assert len(chunks) > 3
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    ids = [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"token_ids": []})["token_ids"]]
    assert ids == whole["logprobs"]["token_ids"]


def test_a_stop_string_ends_the_text_before_it(served):
    asked = {"prompt": "ab", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    text = served.complete(**asked)["choices"][0]["text"]
    stop = text[5:8]
    found = served.complete(**asked, stop=[stop], logprobs=0)["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert "".join(found["logprobs"]["tokens"]) == found["text"], "no token of the stop string is told"


def test_offsets_say_where_tokens_stand_in_the_text(served):
    found = served.complete(prompt="ab", max_tokens=30, temperature=0, logprobs=3, echo=True)["choices"][0]
    marks = found["logprobs"]
    assert found["text"].startswith("ab") and marks["token_logprobs"][0] is None and marks["top_logprobs"][0] is None
    places = [*marks["text_offset"][1:], len(found["text"])]
    for place, end, token in zip(marks["text_offset"], places, marks["tokens"], strict=True):
        assert token in ("<end of text>", "\ufffd", found["text"][place:end])
    assert all(own <= 0 for own in marks["token_logprobs"][1:])
    assert all(len(top) == 3 for top in marks["top_token_ids"][1:])
    likeliest = [next(iter(top.values())) for top in marks["top_token_ids"][3:]]  # behind the prompt of three
    assert likeliest == marks["token_ids"][3:]


def test_the_sum_over_an_echo_is_what_eval_says(served, run, data_dir):
    """Of a document and its end: nats of the model's own, without temperature or what else changes the drawing."""
    text = "ab cd ef gh ij kl"
    inputs = {}
    for split in ("train", "test"):
        inputs[split] = str(run.parent / f"{split}.txt")
        Path(inputs[split]).write_text(text)
    values = preprocess_values("", run.parent / "one", input=inputs, split={"val": 0})
    build(validate(PreprocessConfig, values, Path("test")), SerialWorld())
    found = evaluate_checkpoint(run, (f"data.path={run.parent / 'one'}",), "test", SerialWorld())
    asked = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 2, "top_k": 1}
    end = served.service.loaded.vocabulary.eos_id
    ids = served.ask("/tokenize", {"prompt": text})[1]["tokens"]
    told = served.complete(**asked | {"prompt": [[*ids, end]]})["choices"][0]["logprobs"]["token_logprobs"]
    assert sum(told[1 : len(ids) + 1]) == pytest.approx(-found["loss"] * found["num_tokens"], abs=1e-3)


def test_scoring_alone_writes_nothing(served):
    found = served.complete(prompt="abc", max_tokens=0, echo=True, logprobs=0)
    assert found["choices"][0]["text"] == "abc" and found["usage"]["completion_tokens"] == 0
    assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"] == 4
    assert served.complete(prompt="abc", max_tokens=0, echo=True)["choices"][0]["text"] == "abc"


def test_ids_and_texts_are_two_ways_to_ask_the_same(served):
    _, found = served.ask("/tokenize", {"prompt": "añ😀"})
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == CONTEXT
    how = {"max_tokens": 8, "temperature": 0}
    assert (
        served.complete(prompt=[found["tokens"]], **how)["choices"] == served.complete(prompt="añ😀", **how)["choices"]
    )
    assert served.ask("/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": "añ😀"})
    plain = served.ask("/tokenize", {"prompt": "añ😀", "add_special_tokens": False})[1]["tokens"]
    assert found["tokens"][1:] == plain == list("añ😀".encode())
    assert served.ask("/detokenize", {"tokens": [70000]})[0] == 400


def test_a_prompt_as_long_as_the_context_is_refused_and_a_text_ends_there(served):
    status, found = served.ask("/v1/completions", {"prompt": "a" * CONTEXT})
    assert (status, found["error"]["code"], found["error"]["param"]) == (400, "context_length_exceeded", "prompt")
    found = served.complete(prompt="a" * (CONTEXT - 10), max_tokens=100, ignore_eos=True)
    assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["total_tokens"] <= CONTEXT


# --- What goes wrong


def test_errors_are_openai_s(client, served):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=[], temperature=0)
    assert wrong.value.param == "messages"
    assert client.models.list().data[0].id == client.models.retrieve("tiny").id == "tiny"
    for path, body, expected in [
        ("/v1/models/other", None, 404),
        ("/nothing", None, 404),
        ("/v1/completions", None, 405),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b'{"temperature": NaN}', 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b"\xff", 400),
        ("/v1/completions", b" " * (8 << 20) + b"{}", 413),
    ]:
        status, found = served.ask(path, body)
        assert status == expected
        assert set(found["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_never_comes_is_given_up(served, monkeypatch):
    from hvdlm.serve import app

    monkeypatch.setattr(app, "BODY_S", 0.05)
    status, told = served.ask("/tokenize", b"{", {"Content-Length": "100"})
    assert (status, told["error"]["code"]) == (408, "too_slow")


def test_a_request_s_head_that_never_comes_is_given_up(run, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    with running(opened(run)) as found:
        for whole_first in (False, True):
            with socket.create_connection(("127.0.0.1", found.port), 10) as half:
                if whole_first:
                    half.sendall(head + b"\r\n")
                    answer = b""
                    while not answer.endswith(b"}"):
                        answer += half.recv(1000)
                half.sendall(head)
                assert half.recv(100) == b"", "closed by the server"
        stream = found.begin("/v1/completions", {**LONG, "stream": True})
        reply = stream.getresponse()
        time.sleep(0.5)
        assert reply.read(10) and not found.is_free(), "only heads are waited for"
        stream.close()


def test_connections_that_ask_nothing_make_room_for_one_that_asks(run):
    with running(opened(run), most_open=8) as found:
        asking = found.begin("/v1/completions", {**LONG, "stream": True})
        reply = asking.getresponse()
        idle = [socket.create_connection(("127.0.0.1", found.port), 10) for _ in range(30)]
        for one in idle:
            one.sendall(b"GET / HT")
        assert found.ask("/health")[0] == 200
        until(lambda: len(found.server.server_state.connections) <= 8)
        assert reply.read(10) and not found.is_free(), "who is answered stays"
        asking.close()
        for one in idle:
            one.close()


def test_few_open_files_make_few_connections(monkeypatch):
    limits = {"now": (100, 200)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update(now=pair))
    assert connections.raise_limit() == 68 and limits["now"] == (200, 200)
    limits["now"] = (1024, 1 << 20)
    assert connections.raise_limit() == connections.MOST_OPEN
    limits["now"] = (20, 20)
    assert connections.raise_limit() == connections.FEWEST_OPEN


def test_a_failure_in_mid_stream_is_told_and_the_next_request_is_answered(idle, client, monkeypatch, caplog):
    write, what_people_wrote = Engine._write, "secret"

    def fails(self):
        if self._rows[0].num_written > 3:
            raise RuntimeError(what_people_wrote)
        write(self)

    monkeypatch.setattr(Engine, "_write", fails)
    asked = {"model": "tiny", "prompt": "ab", "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APIError, match="the model failed"):
        list(client.completions.create(**asked, stream=True))
    *_, last = events = idle.events("/v1/completions", prompt="ab", max_tokens=20, ignore_eos=True)
    assert last["error"]["type"] == "server_error" and "data: [DONE]" not in events
    assert idle.ask("/v1/completions", {"prompt": "ab", "max_tokens": 20, "ignore_eos": True})[0] == 500
    monkeypatch.undo()
    assert idle.complete(prompt="ab", max_tokens=3)
    assert "RuntimeError" in caplog.text and what_people_wrote + "\n" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_at_once(idle, stream):
    connection = idle.begin("/v1/completions", {**LONG, "stream": stream})
    until(lambda: not idle.is_free())
    if stream:
        connection.getresponse().read(10)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    start = time.monotonic()
    until(idle.is_free, 5)
    assert time.monotonic() - start < 1


def test_what_the_queue_does_not_hold_is_told_to_come_later(idle, client):
    held = [idle.begin("/v1/completions", {**LONG, "n": 3}) for _ in range(2)]
    until(lambda: idle.service.worker.num_open == 6)
    with pytest.raises(openai.RateLimitError) as full:
        client.completions.create(model="tiny", prompt="a")
    assert int(full.value.response.headers["retry-after"]) > 0
    _, metrics = idle.ask("/metrics")
    assert "hvdlm_texts_running 3" in metrics and "hvdlm_texts_waiting 3" in metrics
    for connection in held:
        connection.close()


@pytest.fixture
def encodings(idle, monkeypatch):
    """Encodes nothing until it is let; the threads and lengths of what is encoded."""
    seen, is_let, encode = [], threading.Event(), idle.service.ids_of

    def waits(prompt):
        seen.append((threading.current_thread().name, len(prompt)))
        assert is_let.wait(30)
        return encode(prompt)

    monkeypatch.setattr(idle.service, "ids_of", waits)
    yield seen, is_let
    is_let.set()


def test_what_waits_for_the_tokenizer_is_bounded_and_given_up_with_its_client(idle, encodings):
    seen, is_let = encodings
    held = [idle.begin("/v1/completions", {"prompt": "a" * number, "max_tokens": 1}) for number in range(1, 7)]
    until(lambda: idle.service.num_encoding == 6)
    for path in ("/v1/completions", "/tokenize"):
        status, told = idle.ask(path, {"prompt": "b"})
        assert (status, told["error"]["code"]) == (429, "queue_full")
    assert idle.ask("/health")[0] == 200, "it is done outside of the event loop"
    for connection in held:
        connection.close()
    until(lambda: idle.service.num_encoding == 0)
    is_let.set()
    idle.complete(prompt="b" * 9, max_tokens=1)
    (first, _), (_, length) = seen  # whose clients have gone are not begun
    assert first.startswith("texts") and length == 9


def test_a_text_far_beyond_the_context_is_not_read_to_its_end(served, monkeypatch):
    service, lengths = served.service, []
    encode = service.tokenizer.encode
    monkeypatch.setattr(service.tokenizer, "encode", lambda text: lengths.append(len(text)) or encode(text))
    for asked in ({"prompt": "a" * 900_000}, {"messages": [{"role": "user", "content": "a" * 900_000}]}):
        with pytest.raises(Fault) as caught:
            asked_of(service, **asked)
        assert caught.value.code == "context_length_exceeded"
    assert len(lengths) == 2 and max(lengths) < 10_000
    assert service._encoded(lambda text: (7,), "a" * 900_000, "prompt") == (7,), "few tokens may be a long text"


def test_texts_of_alternatives_are_made_outside_of_the_engine_s_thread(idle, monkeypatch):
    threads, text_of = set(), writing._text_of
    monkeypatch.setattr(
        writing, "_text_of", lambda *given: threads.add(threading.current_thread().name[:5]) or text_of(*given)
    )
    asked = {"prompt": "abc", "max_tokens": 2, "logprobs": 3, "echo": True, "ignore_eos": True}
    assert idle.complete(**asked)["choices"][0]["logprobs"]["top_logprobs"][2]
    assert idle.events("/v1/completions", **asked)[0]["choices"][0]["logprobs"]["top_logprobs"][2]
    assert threads == {"marks"}


def test_how_many_are_told_with_an_echo_has_a_limit(served, monkeypatch):
    monkeypatch.setattr("hvdlm.serve.service.MOST_ECHOED", 40)
    asked = {"prompt": "a" * 18, "echo": True}
    for number in (None, 0, 1):
        assert asked_of(served.service, **asked, logprobs=number)
    for more in ({"logprobs": 2}, {"logprobs": 0, "n": 3}):
        with pytest.raises(Fault) as caught:
            asked_of(served.service, **asked, **more)
        assert (caught.value.status, caught.value.param) == (400, "logprobs")


@pytest.mark.parametrize("stream", [False, True])
def test_texts_of_tokens_end_with_their_client(idle, monkeypatch, stream):
    made = []

    def slow(tokenizer, places):
        made.append(len(places))
        time.sleep(0.02)
        return writing.told(tokenizer, places)

    monkeypatch.setattr("hvdlm.serve.app.told", slow)
    monkeypatch.setattr("hvdlm.serve.app.PORTION", 1)
    asked = {"prompt": "a" * 100, "max_tokens": 1, "echo": True, "logprobs": 1, "stream": stream}
    connection = idle.begin("/v1/completions", asked)
    until(lambda: made)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    time.sleep(0.3)
    num = len(made)
    time.sleep(0.1)
    assert len(made) == num < 50


def test_health_answers_while_the_model_computes(idle):
    connection = idle.begin("/v1/completions", LONG)
    until(lambda: not idle.is_free())
    times = []
    for _ in range(5):
        start = time.monotonic()
        assert idle.ask("/health") == (200, {"status": "ok"})
        times.append(time.monotonic() - start)
    assert min(times) < 0.2
    connection.close()


def test_a_silent_stream_says_that_it_lives(idle, monkeypatch):
    from hvdlm.serve import answers

    monkeypatch.setattr(answers, "PING_S", 1e-5)
    events = idle.events("/v1/completions", prompt="ab", max_tokens=40, ignore_eos=True)
    assert ": ping" in events and events[-1] == "data: [DONE]"


def test_until_it_is_warm_and_once_it_stops_it_says_so(run):
    service = opened(run)
    assert not service.worker.is_ready
    with running(service) as found:
        assert found.ask("/health") == (200, {"status": "ok"})
        service.worker.is_ready = False
        assert found.ask("/health") == (503, {"status": "starting"})
        service.is_closing = True
        status, told = found.ask("/v1/completions", {"prompt": "a"})
        assert status == 503 and told["error"]["code"] == "stopping"
        assert found.ask("/health") == (503, {"status": "stopping"})


def test_what_has_not_ended_in_the_time_of_grace_is_told_so(run):
    with running(opened(run)) as found:
        held = found.begin("/v1/completions", LONG)
        until(lambda: not found.is_free())
        num_cut = asyncio.run(_drain(found.service, grace_s=0.1))
        told = json.loads(held.getresponse().read())
        held.close()
        assert told["error"]["message"] == "the server was stopped before this was done"
        assert outcome(num_cut, 0.1) == "1 text cut off after --grace-s 0.1; all else that was asked before is answered"
        until(found.is_free, 5)
        assert asyncio.run(_drain(found.service, grace_s=0.1)) == 0
    assert outcome(0, 0.1) == "all that was asked before is answered"


def test_who_is_cancelled_hears_of_it(run):
    """Never the engine's word for it, which no reply has; and the message comes first."""
    service, told = opened(run), []
    for is_stopped in (False, True):
        asked = parse(CompletionRequest, b'{"prompt": "a"}')
        (one,) = service.writings(asked, service.prompts(asked), told.append)
        service.worker.submit(one)
        if is_stopped:
            one.fail = lambda message, one=one: told.append(one.is_cancelled) or 0
            service.worker.cancel_all("it was stopped")
        else:
            one.end(0, CANCELLED)
    first, is_cancelled = told
    assert first.reason == ERROR and first.text and is_cancelled is False


def test_the_end_of_the_job_s_time_lets_what_runs_end(run, monkeypatch):
    service, began = opened(run), time.time()
    monkeypatch.setattr("hvdlm.serve.serving.SPARE_S", 0)
    ending = Ending(grace_s=0.2, job=BatchJob("7", began + 0.2 + LAST_WORDS_S + 0.5))
    seen = []

    async def drain(service, grace_s):
        seen.append(time.time() - began)
        return await _drain(service, grace_s)

    monkeypatch.setattr("hvdlm.serve.serving._drain", drain)
    monkeypatch.setattr("hvdlm.serve.serving.open_service", lambda offer: service)
    with pytest.raises(StoppedOnRequest, match="the end of the job's time"):
        serve(Offer(run), Address(port=0), ending)
    assert service.is_closing and 0.4 < seen[0] < 3


def test_metrics_count_requests_tokens_and_times(served):
    def numbers():
        lines = [line for line in served.ask("/metrics")[1].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = numbers()
    served.complete(prompt="ab", max_tokens=5, ignore_eos=True)
    served.ask("/v1/completions", {"prompt": 7})
    after = numbers()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['hvdlm_requests_total{path="/v1/completions",status="200"}'] == 1
    assert grown['hvdlm_requests_total{path="/v1/completions",status="400"}'] == 1
    assert grown["hvdlm_prompt_tokens_total"] == 3 and grown["hvdlm_written_tokens_total"] == 5
    assert grown["hvdlm_first_token_seconds_count"] == 1 and grown["hvdlm_token_seconds_count"] == 4
    assert grown['hvdlm_token_seconds_bucket{le="+Inf"}'] == 4 and after["hvdlm_writing_seconds_total"] > 0
    assert not any(math.isnan(value) for value in after.values())


# --- Who may ask


def test_a_key_is_asked_for_and_pages_of_others_are_refused(run):
    with running(opened(run), key="k" * 20, origins=("https://a.org",)) as found:
        right = {"Authorization": "Bearer " + "k" * 20}
        assert found.ask("/health")[0] == found.ask("/")[0] == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic " + "k" * 20}):
            status, told = found.ask("/v1/models", headers=headers)
            assert status == 401 and told["error"]["code"] == "invalid_api_key"
        assert found.ask("/v1/models", headers=right)[0] == 200
        for origin, expected in ((found.url, 200), ("https://a.org", 200), ("https://b.org", 403), ("null", 403)):
            assert found.ask("/v1/models", headers={**right, "Origin": origin})[0] == expected
        assert found.ask("/v1/models", headers={**right, "Host": "evil.org"})[0] == 403
        told = found.headers("/v1/models", {**right, "Origin": "https://a.org"})
        assert told["access-control-allow-origin"] == "https://a.org"


BROKEN_HEADERS = [({"Host": "[::1"}, 400), ({"Host": "["}, 400), ({"Origin": "http://["}, 403)]


@pytest.mark.parametrize(("headers", "expected"), BROKEN_HEADERS)
@pytest.mark.parametrize("path", ["/v1/models", "/nothing"])
def test_headers_that_are_no_host_are_refused_like_all_else(run, caplog, path, headers, expected):
    with running(opened(run), key="k" * 20, names=None) as found:
        status, told = found.ask(path, headers=headers)
    assert status == expected and set(told["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in caplog.text


def test_a_stranger_s_name_that_points_here_is_not_answered_to(run):
    """DNS rebinding: Origin and Host agree."""
    names = names_of(Address("0.0.0.0"))
    with running(opened(run), names=names, origins=("https://a.org",)) as found:
        for host, expected in (("evil.org", 403), ("10.0.0.7:8000", 200), (names[-2], 200), ("a.org", 200)):
            assert found.ask("/v1/models", headers={"Host": host, "Origin": f"http://{host}"})[0] == expected, host
    assert names_of(Address("0.0.0.0", key_file=Path("key"))) is None, "a stranger's page has no key"


def test_no_key_is_ever_logged(run, caplog):
    caplog.set_level("DEBUG")
    with running(opened(run), key="right-key-of-letters") as found:
        for key in ("right-key-of-letters", "wrong-key-of-letters"):
            found.ask("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert "key-of-letters" not in caplog.text


@pytest.mark.parametrize(
    ("host", "has_key", "warns"), [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("::1", False, False)]
)
def test_a_server_that_all_may_use_says_so(served, caplog, host, has_key, warns):
    announce(served.service, Address(host), 8000, Ending(), has_key=has_key)
    assert ("whoever reaches this host may use it" in caplog.text) == warns


def test_where_the_template_lies_is_not_told(run, tmp_path):
    (tmp_path / "own.jinja").write_text("x")
    service = open_service(Offer(run, template=tmp_path / "own.jinja"))
    assert service.model_card.facts["chat_template"] == "own.jinja"


def test_without_being_listed_nobody_hears_of_other_origins(served):
    assert "access-control-allow-origin" not in served.headers("/v1/models", {"Origin": served.url})


def trained(folder, **sections):
    data = make_data(folder, SerialWorld())
    train(run_of(data, folder / "run", "train.steps=2", "train.epochs=null", **sections), SerialWorld())
    return folder / "run"


def test_a_pair_model_reads_its_source_whole(tmp_path):
    model = {"family": "transformer", "layers": 1, "encoder_layers": 1, "heads": 2, "width": 16}
    run = trained(tmp_path, task={"kind": "seq2seq", "language": "en"}, model=model)
    with running(opened(run)) as found:
        _, told = found.ask("/v1/models")
        assert told["data"][0]["facts"]["task"] == "seq2seq" and told["data"][0]["facts"]["reads_source"]
        answer = found.complete(prompt="w1 w2", max_tokens=5, temperature=0)
        assert answer["usage"]["prompt_tokens"] == 3 and answer["usage"]["completion_tokens"] <= 5
        message = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5, "temperature": 0}
        _, chat = found.ask("/v1/chat/completions", message)
        assert chat["usage"]["prompt_tokens"] == 3
        assert chat["choices"][0]["message"]["content"] == answer["choices"][0]["text"]
        assert found.ask("/v1/completions", {"prompt": "w1", "echo": True})[1]["error"]["param"] == "echo"


def test_a_model_that_was_counted_is_served_too(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", "model={family: ngram, order: 3}")
    with running(opened(tmp_path / "run")) as found:
        answer = found.complete(prompt="ab", max_tokens=300, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 300
        assert found.service.context is None and answer["system_fingerprint"].endswith("-cpu")


def test_the_fingerprint_says_what_the_numbers_are(run):
    assert opened(run).fingerprint == "step30-float32-cpu"
    assert open_service(Offer(run, int8=True)).fingerprint == "step30-int8-cpu"


def test_a_model_that_fails_from_the_first_ends_the_server(run, monkeypatch):
    def fails(self):
        raise UserError("the model's logits are not finite: it has diverged")

    monkeypatch.setattr(Engine, "step", fails)
    with pytest.raises(UserError, match="it has diverged"):
        serve(Offer(run), Address(port=0), Ending())


def test_a_model_that_writes_no_text_is_refused(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", "task=mlm", "model.causal=false", "train.steps=1", "data.seq_len=32")
    with pytest.raises(UserError, match="cannot continue a text"):
        opened(tmp_path / "run")
