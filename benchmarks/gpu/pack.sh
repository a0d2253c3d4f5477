#!/usr/bin/env bash
# What a machine with a GPU and no network needs beside the checkout: the folder .gpu/, which git ignores, with CIFAR-10
# as tokens (cifar10_tokens.py, about 40 MB) and the commit. The scripts import only what such a machine has: PyTorch,
# transformers, scikit-learn, h5py, pandas, matplotlib, ...; not the command line's packages.
# Run from the checkout's root: benchmarks/gpu/pack.sh [--no-data]. What is there is not made again. Exit 1 above 64 MiB.
set -euo pipefail
PYTHON=${PYTHON:-python3}
SOURCE=${SOURCE:-/work/shared/data/cifar10-*.zip}
LIMIT=$((64 * 1024 * 1024))

mkdir -p .gpu
ignore=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$ignore")"
grep -qxF /.gpu/ "$ignore" 2>/dev/null || echo /.gpu/ >>"$ignore"
git describe --always --dirty >.gpu/COMMIT

if [ "${1:-}" != --no-data ]; then
    PYTHONPATH=. "$PYTHON" benchmarks/gpu/cifar10_tokens.py "$SOURCE" --out .gpu/cifar10-512
fi

tree=$( (git ls-files -z --cached --others --exclude-standard; find .gpu -type f -print0) |
    (xargs -0 stat -c %s 2>/dev/null || true) | awk '{ total += $1 } END { print total }')
echo "what travels: $tree of $LIMIT bytes"
[ "$tree" -le "$LIMIT" ]
