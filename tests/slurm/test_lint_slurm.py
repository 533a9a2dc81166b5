"""The table of values that `hvdlm lint` is held against, judged anew by the sbatch at hand."""

from concurrent.futures import ThreadPoolExecutor

import yaml
from harness import ROOT, run_command

VALUES = yaml.safe_load((ROOT / "tests" / "lint_values.yaml").read_text())
# What this small SLURM has not: GPUs, features, memory that is counted.
NOT_HERE = (
    "generic resource",
    "feature spec",
    "configuration is not available",
    "Trackable RESource",
    "partition",
    "node name",
)


def test_values_are_taken_and_refused_as_the_table_says(slurm, tmp_path):
    def judge(numbered):
        number, line = numbered
        script = tmp_path / f"{number}.sbatch"
        script.write_text(f"#!/bin/bash\n#SBATCH {line}\ntrue\n")
        return line, run_command(["sbatch", "--test-only", script], 60, env=slurm)

    lines = [line for key in ("taken", "refused") for line in VALUES[key].splitlines()]
    with ThreadPoolExecutor(2) as threads:
        answers = dict(threads.map(judge, enumerate(lines)))
    taken = set(VALUES["taken"].splitlines())
    wrong = {
        line: done.stderr
        for line, done in answers.items()
        if (done.returncode == 0) != (line in taken) and not any(word in done.stderr for word in NOT_HERE)
    }
    assert wrong == {}
