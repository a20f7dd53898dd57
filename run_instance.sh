#!/usr/bin/env bash
# Decide one instance: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT
# Exit code 0 whatever the answer (it is in RESULTS_FILE), 1 for another protocol version, 3 for a file that cannot change.
set -eu
# The answer of an earlier run goes first, whatever becomes of this one.
if [ "${1:-}" = v1 ] && [ -f "${5:-}" ]; then
  { printf 'timeout\n' >"$5" || rm -f -- "$5"; } 2>/dev/null || true
fi
dir=$(readlink -f -- "${BASH_SOURCE[0]}")
dir=${dir%/*}
export PYTHONPATH="$dir/src${PYTHONPATH:+:$PYTHONPATH}"
python=$dir/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -S -P -X utf8 -m bitcrown.harness.run "$@" </dev/null
