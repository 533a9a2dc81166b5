"""`hvdlm serve` as people start it, its page in a browser, and its end."""

import os
import re
import signal
import subprocess

import pytest
from harness import HVDLM, ROOT, job_environment, run_command, run_training
from processes import until

pytest.importorskip("starlette", reason="starlette (the serve extra) is not installed")
pytest.importorskip("uvicorn", reason="uvicorn (the serve extra) is not installed")

from labelled import make_data, run_of
from serving import Client, opened, running

from hvdlm.errors import UserError
from hvdlm.serve.access import check_origins, read_key
from hvdlm.serve.serving import Address, listening, tunnel
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "tiny"
    run_training(data_dir, folder, "train.steps=30", "data.seq_len=128", "train.eval_every=30")
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 0)], ids=["TERM", "Ctrl-C"])
def test_a_signal_lets_what_runs_end_and_refuses_what_is_new(run, tmp_path, number, code):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    log = tmp_path / "log"
    environment = {**job_environment(), "SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1"}
    words = ["serve", run, "--port", "0", "--api-key-file", tmp_path / "key"]
    with log.open("w") as out:
        process = subprocess.Popen([*HVDLM, *map(str, words)], cwd=ROOT, env=environment, stderr=out)
    try:
        said = until(lambda: re.search(r"at (http://127.0.0.1:(\d+))/v1", log.read_text()), 60, process, log)
        port = int(said[2])
        client = Client(port, {"Authorization": f"Bearer {KEY}"})
        until(lambda: client.ask("/health")[0] == 200, 30, process, log)
        asked = {"prompt": "secret", "max_tokens": 400, "stream": True, "slide": True, "ignore_eos": True}
        connection = client.begin("/v1/completions", asked)
        stream = connection.getresponse()
        stream.readline()
        process.send_signal(number)
        until(lambda: client.ask("/health")[0] == 503, 10, process, log)
        assert client.ask("/v1/completions", {"prompt": "secret"})[0] == 503
        rest = stream.read().decode()
        connection.close()
        assert rest.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in rest
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert "secret" not in text and KEY not in text and "Traceback" not in text
    assert f"ssh -N -L {port}:localhost:{port} -J login1 " in text
    assert "defaults: max_tokens 256, temperature 0.8" in text and "chat template: plain" in text
    assert ("stopped by SIGTERM" in text) == (number == signal.SIGTERM)


def test_the_last_line_tells_how_many_texts_were_cut_off(run, tmp_path):
    log = tmp_path / "log"
    words = ["serve", run, "--port", "0", "--grace-s", "0.1"]
    with log.open("w") as out:
        process = subprocess.Popen([*HVDLM, *map(str, words)], cwd=ROOT, env=job_environment(), stderr=out)
    try:
        said = until(lambda: re.search(r"at http://127.0.0.1:(\d+)/v1", log.read_text()), 60, process, log)
        client = Client(int(said[1]))
        until(lambda: client.ask("/health")[0] == 200, 30, process, log)
        asked = {"prompt": "a", "max_tokens": 4000, "n": 2, "stream": True, "slide": True, "ignore_eos": True}
        connection = client.begin("/v1/completions", asked)
        stream = connection.getresponse()
        stream.readline()
        process.send_signal(signal.SIGTERM)
        assert "the server was stopped before this was done" in stream.read().decode()
        connection.close()
        assert process.wait(20) == 75
    finally:
        process.kill()
        process.wait()
    last = log.read_text().splitlines()[-1]
    assert "stopped by SIGTERM; 2 texts cut off after --grace-s 0.1" in last


def test_several_ranks_are_one_server(run):
    """The others end at once, so that the launcher waits for the one that serves."""
    ranked = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    done = run_command([*HVDLM, "serve", str(run), "--port", "0"], env={**job_environment(), **ranked})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_cannot_begin_is_told_in_one_line(run, tmp_path):
    with listening(Address(port=0)) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(UserError, match=rf"--port {port}: Address already in use; another program"):
            listening(Address(port=port))
    with pytest.raises(UserError, match=r"--host no\.such\.host\.invalid --port 1"):
        listening(Address("no.such.host.invalid", 1))


def test_a_key_that_others_can_read_or_guess_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    assert read_key(path) == KEY
    path.chmod(0o604)
    with pytest.raises(UserError, match="everybody may read it; `chmod 600"):
        read_key(path)
    path.chmod(0o600)
    for bad in ("", "short", "two words of many letters", "ключ" * 5):
        path.write_text(bad)
        with pytest.raises(UserError, match="a key is one word of 16"):
            read_key(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_origins_are_named_one_by_one():
    check_origins(["https://a.org", "http://localhost:3000"])
    for bad in ("http://[", "*", "a.org", "https://a.org/", "https://", "https://a.org/page"):
        with pytest.raises(UserError, match="is no origin"):
            check_origins([bad])


def test_the_tunnel_leads_where_the_server_listens():
    node = os.uname().nodename
    assert tunnel(Address(), 8000, "login1") == f"ssh -N -L 8000:localhost:8000 -J login1 {node}"
    assert tunnel(Address("0.0.0.0"), 8000, "login1") == f"ssh -N -L 8000:{node}:8000 login1"


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 844)])
def test_the_page_writes_stops_and_goes_on_from_another_token(run, browser, width, height):
    with running(opened(run)) as served:
        page = browser.new_page(viewport={"width": width, "height": height})
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(served.url)
        page.get_by_text("tiny", exact=True).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
        page.fill("#prompt", "the café ")
        page.fill("#seed", "1")
        page.click("#go")
        page.wait_for_selector("#keep:enabled")
        first = page.inner_text("#out")
        num = page.locator("#out .token").count()
        assert first.startswith("the café ") and num > 5
        page.locator("#out .token").nth(3).click()
        before = page.evaluate("tokens.slice(0, 3).map(token => token.id)")
        page.locator("#other button:not(.own)").first.click()
        page.wait_for_selector("#keep:enabled")
        assert page.evaluate("tokens.slice(0, 3).map(token => token.id)") == before
        assert page.inner_text("#out") != first
        written = served.complete(prompt=page.evaluate("[...start, ...tokens.map(token => token.id)]"), max_tokens=1)
        assert written, "what the page holds are ids of the model"
        page.evaluate("$('max_tokens').max = 4000; $('max_tokens').value = 4000")
        page.click("#keep")
        page.click("#go")
        until(lambda: not served.is_free() or page.locator("#keep:enabled").count())
        page.click("#stop", force=True)
        until(served.is_free, 5)
        assert faults == []
        page.close()


def test_the_page_goes_on_from_no_token_of_a_text_whose_source_was_read_whole(browser, tmp_path):
    """What it would send is a source with the text behind it: another source."""
    model = {"family": "transformer", "layers": 1, "encoder_layers": 1, "heads": 2, "width": 16}
    sections = {"task": {"kind": "seq2seq", "language": "en"}, "model": model}
    data = make_data(tmp_path, SerialWorld())
    train(run_of(data, tmp_path / "run", "train.steps=2", "train.epochs=null", **sections), SerialWorld())
    with running(opened(tmp_path / "run")) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.get_by_text("tiny", exact=True).wait_for()
        assert "go on from that" not in page.inner_text("main")
        page.evaluate("tokens = [{id: 5, text: 'w', logprob: -1, top: [{id: 6, text: 'v', logprob: -2}]}]; show()")
        page.locator("#out .token").click()
        assert page.locator("#other button").count() == 2
        assert page.locator("#other button:enabled").count() == 0
        page.close()


def test_the_page_asks_for_the_key(run, browser):
    with running(opened(run), key=KEY) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.get_by_text("the server asks for its key: type it above").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.locator("#key").bounding_box()["y"] < page.locator("#prompt").bounding_box()["y"]
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.get_by_text("tiny", exact=True).wait_for()
        page.click("#go")
        page.wait_for_selector("#keep:enabled")
        page.close()


def test_the_page_heeds_its_fields_and_says_what_ended_a_text(run, browser):
    """Ctrl+Enter writes from each of them; a seed that is no whole number is refused, not made one."""
    with running(opened(run)) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.get_by_text("tiny", exact=True).wait_for()
        page.fill("#prompt", "the ")
        page.fill("#max_tokens", "3")
        page.fill("#seed", "1")
        for field in ("#prompt", "#seed", "#temperature", "#go"):
            page.evaluate("$('out').replaceChildren(); say('')")
            page.press(field, "Control+Enter")
            page.get_by_text(re.compile(r"^3 tokens.*: as many as asked$")).wait_for()
        page.fill("#prompt", "a" * 120)
        page.fill("#max_tokens", "100")
        page.click("#go")
        page.get_by_text("the model's context is full").wait_for()
        page.fill("#seed", "1.5")
        page.press("#seed", "Control+Enter")
        page.get_by_text("Seed: a whole number").wait_for()
        page.close()
