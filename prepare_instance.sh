#!/usr/bin/env bash
# Before an instance: prepare_instance.sh v1 CATEGORY ONNX VNNLIB. Checks the files, ends what a dead run left behind.
# Exit code 0 whatever it finds, 1 for another protocol version.
set -eu
dir=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
python=$dir/.venv/bin/python
if [ ! -x "$python" ]; then
  python=python3
  export PYTHONPATH="$dir/src${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -P -X utf8 -m bitcrown.harness.prepare "$@" </dev/null
