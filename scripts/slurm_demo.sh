#!/usr/bin/env bash
# The whole way on a real SLURM of two virtual nodes: preprocess, train (preempted once), eval, scaling, report.
#   make slurm-demo        starts a private SLURM on this machine, runs this, and takes it down again
#   scripts/slurm_demo.sh  on any SLURM; overrides go to the configs as with `hvdlm submit pipeline`
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
run=${RUN:-runs/slurm-demo}
jobs=$run/jobs
if [ -e "$run" ]; then
    echo "[slurm-demo] $run is there already; remove it, or set RUN to another folder" >&2
    exit 2
fi

step() { printf '\n== %s\n$' "$1"; shift; printf ' %q' "$@"; echo; "$@"; }

# What the queue shows of our jobs, whenever that has changed: minutes pass between two steps.
said=nothing
say_what_is_waited_for() {
    local ids queue now later
    ids=$(sed -n 's/^ "id": "\(.*\)",/\1/p' "$jobs"/*/job.json | paste -sd,)
    queue=$(squeue -h -j "$ids" -o '%i %j: %T (%r)' 2>/dev/null | sed 's/ (None)//') || true
    now=$({ grep -v '(Dependency)$' <<<"$queue" || true; } | paste -sd'|' | sed 's/|/, /g')
    later=$(grep -c '(Dependency)$' <<<"$queue") || true
    if [ "$now" != "$said" ]; then
        printf '[slurm-demo] %d:%02d waiting for %s; then come %d jobs\n' \
            $((SECONDS / 60)) $((SECONDS % 60)) "${now:-the queue}" "$later"
        said=$now
    fi
}

echo "[slurm-demo] the whole way takes about 13 minutes on 2 cores; everything goes to $run"
step "1/4 one command queues the pipeline" \
    hvdlm submit pipeline configs/quickstart-data.yaml configs/quickstart.yaml \
    "preprocess.output=$run/data" "data.path=$run/data" "run_dir=$run/train" checkpoint.every=20 "$@" \
    --site "${SITE:-generic-cpu}" --nodes 2 --ranks-per-node 1 --time 20 --ranks 1,2 --jobs-dir "$jobs"

train=$(sed -n 's/^ "id": "\(.*\)",/\1/p' "$jobs/train-001/job.json")
printf '\n== 2/4 the training begins …\n'
until [ -e "$run/train/checkpoints/latest" ]; do
    if grep -q ' end [^0]' "$jobs"/*/history 2>/dev/null; then
        echo "[slurm-demo] a job failed; its log: hvdlm logs --jobs-dir $jobs JOB" >&2
        hvdlm jobs --jobs-dir "$jobs" >&2
        exit 1
    fi
    say_what_is_waited_for
    sleep 1
done
hvdlm jobs --jobs-dir "$jobs"
step "3/4 … and is preempted: it saves, exits 75, is queued again, and goes on from its checkpoint" \
    scancel --batch --signal=USR1 "$train"
while [[ $(hvdlm jobs --jobs-dir "$jobs") =~ PENDING|RUNNING|COMPLETING|CONFIGURING|REQUEUE ]]; do
    say_what_is_waited_for
    sleep 2
done

printf '\n== 4/4 what became of the jobs\n'
hvdlm jobs --jobs-dir "$jobs"
grep -H . "$jobs/train-001/history"
grep -q 'restart=1 end 0' "$jobs/train-001/history"
report=$run/train/scaling/report.html
ls "$run/train/eval-val.json" "$report" >/dev/null
printf '\nEverything of this run: %s\n%s\n' "$(realpath "$run")" "$(realpath "$report")"
