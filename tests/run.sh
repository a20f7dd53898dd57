#!/usr/bin/env bash
# Run the tests, with everything they need set up first. Arguments go to pytest; --only-setup stops before it.
set -euo pipefail
dir=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$dir/.venv/bin/python
if ! "$python" -P -c 'import torch, onnx, onnxruntime, numpy, bitcrown' 2>/dev/null; then
  "$dir/install_tool.sh" v1
fi
if ! "$python" -P -c 'import pytest, pytest_timeout, xdist, hypothesis, mypy, ruff, vnnlib, google_crc32c' 2>/dev/null; then
  dev=$("$python" -c 'import sys, tomllib; print("\n".join(tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]["dev"]))' "$dir/pyproject.toml")
  "$python" -m pip install -q -c "$dir/constraints.txt" -r /dev/stdin <<<"$dev"
fi
[ "${1:-}" != --only-setup ] || exit 0
cd "$dir"
# A file of tests stays with one of as many processes as there are cores, each of which computes on one thread.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# In the order of the folders: files of few tests are the longest ones (the fuzzer), and come last otherwise.
exec "$python" -m pytest -n logical --dist loadfile --no-loadscope-reorder "$@"
