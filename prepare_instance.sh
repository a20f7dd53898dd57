#!/usr/bin/env bash
# Before an instance: prepare_instance.sh v1 CATEGORY ONNX VNNLIB. Checks the files, ends what a dead run left behind.
# Exit code 0 whatever it finds, 1 for another protocol version.
set -eu
dir=$(readlink -f -- "${BASH_SOURCE[0]}")
dir=${dir%/*}
export PYTHONPATH="$dir/src${PYTHONPATH:+:$PYTHONPATH}"
python=$dir/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -P -X utf8 -m bitcrown.harness.prepare "$@" </dev/null
