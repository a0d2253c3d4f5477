#!/usr/bin/env bash
# Five minutes of one GPU (call 0), then, when what it shows is mended, a half hour in five calls of less than ten
# minutes, in order of worth: session.sh CALL, CALL from 0 to 5.
# Each call runs in the checkout's root on the machine, with .gpu (pack.sh) in it; what comes back lies under $OUT (at
# most 8 files of 16 MiB). State is kept in $STATE while the machine is held, so the calls follow one another
# without a pause; call 2 goes on where call 1 stopped. Minutes and their arithmetic: docs/guides/gpu.md.
#   0  check; a path of a few layers, ImageNet's shape at its smallest sizes, extraction, training at one batch: its rows
#      come back and are not kept, so that later calls measure all anew
#   1  check; train, first part        2  train to the end, extract, sweep, concat, report
#   3  path_speed, extract_speed       4  train_speed, objectives
#   5  the trained weights in bfloat16, in pieces: PART=1, then PART=2 (only if somebody wants them)
# A call made again measures only what has no row yet. GO_ON=1 trains although the check found something off;
# COMPILE=no measures without torch.compile. DRY=1 prints the commands; TOY=1 DEVICE=cpu runs all tiny on the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
CALL=${1:?which call, 0 to 5}
OUT=${OUT:?a folder for what comes back}
STATE=${STATE:-/tmp/probekit-gpu}
DATA=${DATA:-.gpu/cifar10-512}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
TOY=${TOY:+--toy} # empty, or the flag
mkdir -p "$OUT/gpu" "$STATE/gpu"

export PYTHONUNBUFFERED=1 PROBEKIT_BENCHMARK_RESULTS=$OUT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
[ -f .gpu/COMMIT ] && export PROBEKIT_COMMIT=$(cat .gpu/COMMIT)
unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE # set in some images: float32 is to mean float32
# compiled kernels stay with the state: the second call does not compile again
export TORCHINDUCTOR_CACHE_DIR=$STATE/inductor TRITON_CACHE_DIR=$STATE/triton
failed=0

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
    # 3: training paused, as it should
    [ $rc = 0 ] || [ $rc = 3 ] || failed=1
    return $rc
}

speed() { here "$1" "$2" ${COMPILE:+--compile "$COMPILE"} "${@:3}"; }

here() { step "$1" "$PYTHON" "benchmarks/gpu/$2" --device "$DEVICE" $TOY "${@:3}"; }

cifar() { here "$1" train_cifar10.py --data "$DATA" --out "$STATE/cifar10" --minutes "${MINUTES:-8}" "${@:2}"; }

call() {
    [ "$DEVICE" = cuda ] && [ -z "${DRY:-}" ] && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    # the folder that comes back is empty at first: rows of earlier calls say what is finished
    [ "$CALL" = 0 ] || [ "$CALL" = 5 ] || cp "$STATE"/gpu/*.csv "$OUT/gpu/" 2>/dev/null
    case $CALL in
    0)
        here 110 check.py
        here 60 path_speed.py layers --layer-minutes 0.2
        here 50 path_speed.py imagenet --minutes 0.3
        speed 40 extract_speed.py forward
        speed 40 train_speed.py batches
        ;;
    1)
        # what differs from the CPU makes the rest worthless, unless somebody has looked at it
        { here 110 check.py || [ -n "${GO_ON:-}" ]; } && cifar 470 train --stop-after 430
        ;;
    2)
        cifar 200 train --stop-after 180 && cifar 130 extract && cifar 110 sweep && cifar 80 concat && cifar 50 report &&
            step 10 tar czf "$OUT/cifar10.tar.gz" -C "$STATE/cifar10" keep
        ;;
    3)
        here 320 path_speed.py
        local trained=()
        [ -f "$STATE/cifar10/run/config.json" ] && [ -z "$TOY" ] && trained=(--run "$STATE/cifar10/run" --data "$DATA")
        speed 265 extract_speed.py "${trained[@]}"
        ;;
    4)
        speed 255 train_speed.py
        here 330 objectives.py --data "$DATA" --out "$STATE/objectives" --minutes 1.5
        ;;
    5)
        step 60 "$PYTHON" benchmarks/gpu/weights.py "$STATE/cifar10/run" --part "${PART:-1}" --into "$OUT"
        ;;
    *)
        echo "call $CALL: give 0 to 5"
        failed=1
        ;;
    esac
    [ "$CALL" = 0 ] || cp "$OUT"/gpu/*.csv "$STATE/gpu/" 2>/dev/null
    exit $failed
}

# a pipe, so that the log is whole before the script ends
call 2>&1 | tee "$OUT/log-$CALL.txt"
exit "${PIPESTATUS[0]}"
