#!/usr/bin/env bash
# Five minutes of one GPU (call 0), then, when what it shows is mended, calls of less than ten minutes in order of
# worth, the figures first and training after them: session.sh CALL, CALL from 0 to 7.
# Each call runs in the checkout's root on the machine, with .gpu (pack.sh) in it; what comes back is put under $OUT (at
# most 8 files of 16 MiB) after every step, since a lent machine keeps nothing. State is kept in $STATE while the machine
# is held, so the calls follow one another without a pause. Minutes and their arithmetic: docs/guides/gpu.md.
#   0  check; a path of a few layers, ImageNet's shape at its smallest sizes, extraction plain and compiled at one batch,
#      training at batch 64: its rows come back in $OUT/first, and later calls measure all anew
#   1  check, path_speed, extraction's forward pass     2  the rest of extract_speed, train_speed
#   3  train width 64, three seeds                      4  train them to the end, extract, sweep, report
#   5  train widths 128, 256, 512                       6  the same for these
#   7  objectives
# A call made again measures only what has no row yet. GO_ON=1 goes on although the check found something off;
# COMPILE=no measures without torch.compile. DRY=1 prints the commands; TOY=1 DEVICE=cpu runs all tiny on the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
CALL=${1:?which call, 0 to 7}
OUT=${OUT:?a folder for what comes back}
STATE=${STATE:-/tmp/probekit-gpu}
DATA=${DATA:-.gpu/cifar10-512}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
TOY=${TOY:+--toy} # empty, or the flag
mkdir -p "$OUT/gpu" "$STATE/gpu"

export PYTHONUNBUFFERED=1 PROBEKIT_BENCHMARK_RESULTS=$OUT
[ "$CALL" = 0 ] && PROBEKIT_BENCHMARK_RESULTS=$OUT/first # so that no later call takes its parts for finished
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
[ -f .gpu/COMMIT ] && export PROBEKIT_COMMIT=$(cat .gpu/COMMIT)
unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE # set in some images: float32 is to mean float32
# compiled kernels stay with the state: the second call does not compile again
export TORCHINDUCTOR_CACHE_DIR=$STATE/inductor TRITON_CACHE_DIR=$STATE/triton
failed=0

# What has been found so far, under $OUT and in the state.
pack_results() {
    cp "$OUT"/gpu/*.csv "$STATE/gpu/" 2>/dev/null
    [ -d "$STATE/cifar10/keep" ] || return 0
    tar czf "$STATE/cifar10.tar.gz" -C "$STATE/cifar10" keep && mv "$STATE/cifar10.tar.gz" "$OUT/"
}

# step SECONDS COMMAND...: one step within its time; what fails does not stop the rest
step() {
    local limit=$1 begun=$SECONDS rc=0
    shift
    [ -z "$TOY" ] || limit=$((6 * limit)) # whatever CPU it is tried on
    if [ -n "${DRY:-}" ]; then
        echo "$limit s: $*"
        return
    fi
    echo "=== $*"
    timeout -k 10 "$limit" "$@" || rc=$?
    echo "=== exit $rc after $((SECONDS - begun)) s"
    pack_results
    # 3: training paused, as it should
    [ $rc = 0 ] || [ $rc = 3 ] || failed=1
    return $rc
}

speed() { here "$1" "$2" ${COMPILE:+--compile "$COMPILE"} "${@:3}"; }

here() { step "$1" "$PYTHON" "benchmarks/gpu/$2" --device "$DEVICE" $TOY "${@:3}"; }

SMALLEST="64:0 64:1 64:2" WIDER="128:0 256:0 512:0"

# cifar SECONDS RUNS STAGES...
cifar() {
    here "$1" train_cifar10.py "${@:3}" --data "$DATA" --out "$STATE/cifar10" --runs $2
}

# train_on SECONDS RUNS: training that pauses before its limit
train_on() { cifar "$1" "$2" train --stop-after $(($1 - 30)); }

# finish RUNS: to the end, and what follows
finish() {
    train_on 210 "$1" && cifar 130 "$1" extract && cifar 170 "$1" sweep && cifar 60 "$1" report
}

call() {
    [ "$DEVICE" = cuda ] && [ -z "${DRY:-}" ] && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    # the folder that comes back is empty at first: rows of earlier calls say what is finished
    [ "$CALL" = 0 ] || cp "$STATE"/gpu/*.csv "$OUT/gpu/" 2>/dev/null
    case $CALL in
    0)
        here 110 check.py
        here 60 path_speed.py layers --layer-minutes 0.2
        here 50 path_speed.py imagenet --minutes 0.3
        speed 40 extract_speed.py forward --batches 64
        speed 40 train_speed.py batches --batches 64
        ;;
    1)
        # what differs from the CPU makes the rest worthless, unless somebody has looked at it
        { here 110 check.py || [ -n "${GO_ON:-}" ]; } && {
            here 320 path_speed.py
            speed 150 extract_speed.py forward
        }
        ;;
    2)
        speed 265 extract_speed.py
        speed 255 train_speed.py
        ;;
    3) train_on 580 "$SMALLEST" ;;
    4) finish "$SMALLEST" ;;
    5) train_on 580 "$WIDER" ;;
    6) finish "$WIDER" ;;
    7) here 330 objectives.py --data "$DATA" --out "$STATE/objectives" --minutes 1.5 ;;
    *)
        echo "call $CALL: give 0 to 7"
        failed=1
        ;;
    esac
    exit $failed
}

# a pipe, so that the log is whole before the script ends
call 2>&1 | tee "$OUT/log-$CALL.txt"
exit "${PIPESTATUS[0]}"
