#!/usr/bin/env bash
# What a machine with a GPU and no network needs beside the checkout, in two folders that git ignores:
#   .gpu/   CIFAR-10 as tokens (cifar10_tokens.py, about 33 MB), the commit
#   .whl/   wheels of the pure-Python packages that machine lacks (WHEELS; none compiled, so any Python 3.11+ takes them)
# Run from the checkout's root: benchmarks/gpu/pack.sh [--no-data]. What is there is not made again. Exit 1 above 64 MiB.
set -euo pipefail
PYTHON=${PYTHON:-python3}
SOURCE=${SOURCE:-/work/shared/data/cifar10-*.zip}
# the command line's needs; the libraries themselves (torch, h5py, scikit-learn, ...) are in the machine's image
WHEELS=${WHEELS:-cyclopts docstring-parser rich-rst}
LIMIT=$((64 * 1024 * 1024))

mkdir -p .gpu .whl
ignore=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$ignore")"
for folder in /.gpu/ /.whl/; do
    grep -qxF "$folder" "$ignore" 2>/dev/null || echo "$folder" >>"$ignore"
done
git describe --always --dirty >.gpu/COMMIT

for name in $WHEELS; do
    version=$("$PYTHON" -m pip show "$name" 2>/dev/null | sed -n 's/^Version: //p')
    if ! compgen -G ".whl/${name//-/_}-*.whl" >/dev/null; then
        "$PYTHON" -m pip download -q --no-deps --only-binary=:all: -d .whl "$name${version:+==$version}"
    fi
done
for wheel in .whl/*.whl; do
    case $wheel in *-none-any.whl) ;; *) echo "$wheel is compiled for one machine: see the README of the device" >&2; exit 1 ;; esac
done

if [ "${1:-}" != --no-data ]; then
    PYTHONPATH=. "$PYTHON" benchmarks/gpu/cifar10_tokens.py "$SOURCE" --out .gpu/cifar10-512
fi

tree=$( (git ls-files -z --cached --others --exclude-standard; find .gpu .whl -type f -print0) |
    (xargs -0 stat -c %s 2>/dev/null || true) | awk '{ total += $1 } END { print total }')
echo "what travels: $tree of $LIMIT bytes"
[ "$tree" -le "$LIMIT" ]
