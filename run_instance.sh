#!/usr/bin/env bash
# Decide one instance: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT
# Exit code 0 whatever the answer (it is in RESULTS_FILE), 1 for another protocol version.
set -eu
dir=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
python=$dir/.venv/bin/python
if [ ! -x "$python" ]; then
  python=python3
  export PYTHONPATH="$dir/src${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -P -X utf8 -m bitcrown.harness.run "$@" </dev/null
