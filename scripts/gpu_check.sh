#!/usr/bin/env bash
# Does everything work on this node's GPUs, and how fast? After `make setup` there; about 10 minutes on one H100.
#   scripts/gpu_check.sh                    all steps
#   scripts/gpu_check.sh tests bench        some: doctor tests bench data train resume ranks scale generate
# A step that fails or takes too long stops no other one; logs, records and runs are left in OUT (runs/gpu-check).
# LIMIT is seconds for a step (300), BENCH the options of `hvdlm bench gpu`, TRAIN overrides of the training config.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/.." || exit
export PATH=$PWD/.venv/bin:$PATH
OUT=${OUT:-runs/gpu-check}
read -ra bench_options <<<"${BENCH:---micro-batches 16,32 --compile yes --rounds 3 --steps 1}"
read -ra overrides <<<"${TRAIN:-}"
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
export PYTHONUNBUFFERED=1
steps=("$@")
[ $# -gt 0 ] || steps=(doctor tests bench data train resume ranks scale generate)
gpus=${GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
gpt=(configs/gpt-124m.yaml "data.path=$OUT/data" train.eval_tokens=65536 optim.warmup_steps=2 log.every=5)

doctor() { hvdlm doctor; }

tests() { python -m pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_gpu_time.py tests/test_draws.py; }

bench() { hvdlm bench gpu --out "$OUT/bench" "${bench_options[@]}"; }

# Byte-level BPE of GPT-2's size on the sources of Python's standard library; and how fast windows of it are read.
data() {
    hvdlm preprocess configs/quickstart-data.yaml "output=$OUT/data" tokenizer.vocab_size=50304 &&
        hvdlm bench reading --repeats 3
}

train() { # 20 steps, two of them in a trace, a validation and a checkpoint
    hvdlm train "${gpt[@]}" "run_dir=$OUT/train" train.steps=20 "log.trace=[12,14]" "${overrides[@]}" && figures "$OUT/train"
}

resume() { hvdlm train "${gpt[@]}" "run_dir=$OUT/train" train.steps=30 "${overrides[@]}" && figures "$OUT/train"; }

# Both worlds; of more ranks than GPUs NCCL is refused in one line, MPI goes on and says that they share.
ranks() {
    local tiny=(configs/quickstart.yaml "data.path=$OUT/data" train.steps=20) more=$((gpus + 1))
    mpirun -np 1 hvdlm train "${tiny[@]}" world=horovod "run_dir=$OUT/horovod-1" || return
    mpirun --oversubscribe -np 2 hvdlm train "${tiny[@]}" world=mpi "run_dir=$OUT/mpi-2" || return
    if [ "$gpus" -gt 1 ]; then
        mpirun -np "$gpus" hvdlm train "${tiny[@]}" "train.global_batch=$((24 * gpus))" "run_dir=$OUT/horovod" || return
    fi
    mpirun --oversubscribe -np "$more" hvdlm train "${tiny[@]}" world=horovod "train.global_batch=$((24 * more))" \
        "run_dir=$OUT/refused" && return 1
    [ $? = 2 ]
}

scale() {
    local counts=1
    [ "$gpus" -gt 1 ] && counts=1,$gpus
    hvdlm scale "${gpt[@]}" "run_dir=$OUT/scale" "${overrides[@]}" --ranks "$counts" --mode weak --steps 5 --warmup 2 \
        --repeats 2 --out "$OUT/scaling"
}

generate() {
    local start=$EPOCHREALTIME begun
    hvdlm generate "$OUT/train" --prompt 'def __init__(self' --max-tokens 1 >"$OUT/one.txt" || return
    begun=$EPOCHREALTIME
    hvdlm generate "$OUT/train" --prompt 'def __init__(self' --max-tokens 300 --json | tee "$OUT/text.json" || return
    python - "$OUT" "$start" "$begun" "$EPOCHREALTIME" <<'PY'
import json, sys
from pathlib import Path
from hvdlm.tokenizer import load
folder, (start, begun, end) = Path(sys.argv[1]), map(float, sys.argv[2:])
text = json.loads((folder / "text.json").read_text())["text"]
tokens, seconds = len(load(folder / "train" / "tokenizer.json").encode(text)), (end - begun) - (begun - start)
print(f"figure: {tokens} tokens at {tokens / max(seconds, 1e-9):.0f} tokens/s after a start of {begun - start:.1f} s")
PY
}

figures() { # of a run's last interval
    python - "$1" <<'PY'
import sys
from pathlib import Path
from hvdlm.session.metrics import read_metrics
rows = [row for row in read_metrics(Path(sys.argv[1], "metrics.jsonl"), "train") if "tokens_per_s" in row]
last, mfu = rows[-1], [f"{row['mfu']:.1%}" for row in rows if "mfu" in row]
print(f"figure: {last['tokens_per_s']:,.0f} tokens/s, MFU {', '.join(mfu[-4:])}, {last['memory_gb']:.1f} GB,"
      f" data wait {last['data_wait']:.2%}")
PY
}

mkdir -p "$OUT"
if [ "${1:-}" = --only ]; then "$2"; exit; fi
results=()
for step in "${steps[@]}"; do
    printf '\n== %s\n' "$step"
    start=$SECONDS verdict=PASS
    timeout -k 10 "${LIMIT:-300}" scripts/gpu_check.sh --only "$step" 2>&1 | tee "$OUT/$step.log" || verdict=FAIL
    figure=$(sed -n 's/^figure: //p' "$OUT/$step.log" | tail -1)
    results+=("$(printf '%-5s %-9s %4d s  %s' "$verdict" "$step" $((SECONDS - start)) "$figure")")
done
printf '\n'
printf '%s\n' "${results[@]}" | tee "$OUT/results.txt"
! grep -q ^FAIL "$OUT/results.txt"
