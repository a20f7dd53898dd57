#!/usr/bin/env bash
# Decide a bundled suite through the competition's scripts: benchmarks/run.sh [quickstart] [OPTION ...]
# Does its own set-up. Exit code 0 if every instance with a known truth is decided and none is wrong.
# Options are those of `bitcrown bench` (--resume goes on after an interruption); results go to results/SUITE here
# (or below the current folder where this one cannot be written) unless --out says otherwise.
set -euo pipefail
dir=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
suite=${1:-quickstart}
[ $# -eq 0 ] || shift
[ -d "$dir/benchmarks/$suite" ] || { echo "bitcrown: there is no suite benchmarks/$suite" >&2; exit 2; }
python=$dir/.venv/bin/python
"$python" -P -c 'import torch, onnx, onnxruntime, numpy, bitcrown' 2>/dev/null || "$dir/install_tool.sh" v1
out=$dir/results
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || out=$PWD/results # in the container the tree belongs to root
case " $* " in *" --resume "*) ;; *) set -- --fresh "$@" ;; esac
exec "$python" -P -X utf8 -m bitcrown.cli bench "$dir/benchmarks/$suite" --out "$out/$suite" --need-all "$@"
