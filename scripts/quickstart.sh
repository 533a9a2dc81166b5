#!/usr/bin/env bash
# The main job end to end on this machine: text, shards, training, evaluation, a sample, scaling, reports.
#   make quickstart                    on the sources of Python's standard library
#   make quickstart CORPUS=my/texts    on files of yours (one text file: its paragraphs are the documents)
#   scripts/quickstart.sh train.steps=20    overrides go to the training config
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
run=${RUN:-runs/quickstart${CORPUS:+-$(basename "$CORPUS" | tr -c 'A-Za-z0-9.\n-' _)}}
# Open MPI wants to be told that root is meant, and two ranks on one core with two hardware threads.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe

# Texts of your own may be few, so more of them validate; and what cannot be read is for you to know.
own=()
if [ -n "${CORPUS:-}" ]; then
    own=("input=$CORPUS" split.val=0.1 errors=strict)
    case "$(find "$CORPUS" -name '*.jsonl' -o -name '*.jsonl.gz' 2>/dev/null | head -1)" in ?*) own+=(format=auto) ;;
    *) if [ -f "$CORPUS" ]; then own+=(format=paragraphs); fi ;; esac
fi

step() { printf '\n== %s\n$' "$1"; shift; printf ' %q' "$@"; echo; "$@"; }

step "1/7 raw text to tokenized HDF5 shards, 2 MPI ranks" \
    mpirun -np 2 hvdlm preprocess configs/quickstart-data.yaml "output=$run/data" "${own[@]}"
step "2/7 training, 2 ranks, Horovod" \
    mpirun -np 2 hvdlm train configs/quickstart.yaml "run_dir=$run/train" "data.path=$run/data" "$@"
split=val
if ! ls "$run"/data/val-*.h5 >/dev/null 2>&1; then split=train; fi  # too few documents to spare one
step "3/7 evaluation on the whole $split split, 2 ranks" \
    mpirun -np 2 hvdlm eval "$run/train" --split "$split" --json | tee "$run/eval.json"
step "4/7 a sample" \
    hvdlm generate "$run/train" --prompt "${PROMPT:-def __init__(self}" --max-tokens 120 | tee "$run/sample.txt"
step "5/7 weak and strong scaling at 1 and 2 ranks" \
    hvdlm scale configs/quickstart.yaml "run_dir=$run/train" "data.path=$run/data" "$@" --ranks 1,2 --mode both --steps 15 --warmup 3 --repeats "${REPEATS:-3}" --out "$run/scaling"
step "6/7 the report on scaling, from the records alone" \
    hvdlm report "$run/scaling"
step "7/7 the report on the training: curves, validations, events, a text" \
    hvdlm report "$run/train" --prompt "${PROMPT:-def __init__(self}"
printf '\nEverything of this run: %s\n' "$(realpath "$run")"
printf '%s\n' "$(realpath "$run/scaling/report.html")" "$(realpath "$run/train/report/report.html")" "$(realpath "$run/train/report/loss.png")"
