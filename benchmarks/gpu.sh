#!/usr/bin/env bash
# Everything that needs a GPU, in less than eight minutes, with one table and one record: benchmarks/gpu.sh [OPTION ...]
# Options: gpu.py --help. PYTHON names another interpreter than .venv's (one that has the dependencies already).
set -euo pipefail
dir=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$dir/.venv/bin/python}
if [ -z "${PYTHON:-}" ]; then "$dir/tests/run.sh" --only-setup; fi
export PYTHONPATH=$dir/src${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$dir/benchmarks/gpu.py" "$@"
