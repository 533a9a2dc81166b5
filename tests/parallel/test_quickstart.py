"""The quickstart and the README's own commands, run as a reader would."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness import ROOT, job_environment, run_command
from test_documents import readme_blocks, readme_commands

from hvdlm.session.metrics import read_metrics

pytestmark = pytest.mark.long
SMALL = [
    "train.steps=12",
    "train.eval_tokens=2000",
    "data.seq_len=32",
    "model.width=32",
    "model.layers=1",
    "optim.warmup_steps=2",
]


def test_the_quickstart_from_text_to_report(corpus, tmp_path):
    settings = {"RUN": str(tmp_path / "run"), "CORPUS": str(corpus), "REPEATS": "1"}
    command = [ROOT / "scripts" / "quickstart.sh", *SMALL]
    done = run_command(command, 280, cwd=tmp_path, env={**job_environment(), **settings})
    assert done.returncode == 0, done.stderr
    report, page, picture = map(Path, done.stdout.splitlines()[-3:])
    assert report == tmp_path / "run" / "scaling" / "report.html"
    assert page == tmp_path / "run" / "train" / "report" / "report.html"
    assert "ended at step 12 of 12" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Parallel efficiency" in report.read_text() or "parallel efficiency" in report.read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "data",
        "train",
        "scaling",
        "eval.json",
        "sample.txt",
    }
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "train" / "metrics.jsonl", "train")] == list(
        range(1, 13)
    )


def run_in(folder, command):
    done = run_command(["sh", "-c", command], 200, cwd=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_readmes_commands_run(tmp_path):
    """In the order of the README, in a folder that sees configs/ and jobs/ as a clone does."""
    for name in ("configs", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [
        command for command in readme_commands() if not command.startswith(("make ", "git ", "srun ", "sbatch ", "cd "))
    ]
    assert len(commands) >= 8
    for command in commands:
        done = run_in(tmp_path, command)
        if " eval " in command:  # 30 steps are enough to leave token frequencies behind
            result = json.loads(done.stdout.splitlines()[-1])
            assert result["loss"] < result["unigram_loss"] - 0.2


def test_the_readmes_chinese_and_english_corpora(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ((fetch, *commands),) = [block for block in readme_blocks() if "apt-get" in block[0]]
    if subprocess.run(fetch, shell=True, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("apt-get cannot fetch the two Debian packages here")
    done = [run_in(tmp_path, command) for command in commands]
    manifest = json.loads((tmp_path / "runs" / "zh-en" / "manifest.json").read_text())
    assert manifest["num_documents"] > 20
    assert manifest["statistics"]["pii_email"] > 10
    assert "的" in done[2].stdout
    assert re.search(r"cjk +11", done[3].stdout)  # of those drawn from everywhere in the input
    assert (tmp_path / "lengths.png").stat().st_size > 5000
    assert (tmp_path / "runs" / "zh-en-megatron" / "train.idx").exists()
