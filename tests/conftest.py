"""Fixtures for all tests."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import HVDLM, make_text, preprocess, run_ranks

pytest_plugins = ["rank_sessions"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write the golden files anew; review them as a diff")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started behind a shell's `&`, which children inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets the logger up; what others find in it is as it was."""
    logger = logging.getLogger("hvdlm")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium that is there; playwright brings none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (the test extra) is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def corpus(made_once: Callable[..., Path]) -> Path:
    """A folder of 40 text files of different lengths, some empty."""

    def write(folder: Path) -> None:
        for number in range(40):
            text = "" if number % 13 == 12 else make_text(number, 30 + 37 * number)
            (folder / f"text-{number:03d}.txt").write_text(text, encoding="utf-8")

    return made_once("corpus", write)


@pytest.fixture(scope="session")
def data_dir(corpus: Path, made_once: Callable[..., Path]) -> Path:
    """Byte-level shards of the corpus, several a split."""
    return made_once("data", lambda folder: preprocess(corpus, folder))


Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def job() -> Job:
    """Run `hvdlm WORDS` on N ranks (0: no launcher) and demand its exit code."""

    def start(
        ranks: int, *words: str | Path, code: int = 0, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        done = run_ranks(ranks, [*HVDLM, *words], timeout_s)
        assert done.returncode == code, f"exit {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
        return done

    return start
