"""Fixtures of the tests on ranks."""

import subprocess

import pytest
from harness import HVDLM, LONG, ROOT, job_environment, run_values, write_config
from processes import until

from hvdlm import checkpoint
from hvdlm.launch.plan import start_command


@pytest.fixture
def start_training(data_dir, tmp_path):
    """Start a run that lasts for minutes, and wait for its first checkpoint."""
    started = []

    def start(*overrides, wait=True, ranks=2):
        config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
        command = start_command(ranks, [*HVDLM, "train", str(config), *LONG, "checkpoint.every=5", *overrides])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=job_environment(), **pipes)
        started.append(process)
        if wait:
            until(lambda: checkpoint.complete_steps(tmp_path / "run"), process=process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
        process.stderr.close()
