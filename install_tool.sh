#!/usr/bin/env bash
# Install bitcrown into .venv beside this script: install_tool.sh v1
# Debian 12, Ubuntu 22.04 or later; root, or a user with sudo where Python itself is missing. Safe to run again.
# pip's own configuration (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf) is honoured; TORCH names another torch requirement,
# TORCH_INDEX an index for torch alone (https://download.pytorch.org/whl/cpu has wheels without CUDA).
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "bitcrown: unknown protocol version '${1:-}'; usage: install_tool.sh v1" >&2; exit 1; }
dir=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
venv=$dir/.venv
fail() { echo "bitcrown: $1" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo -n "$@"
  else return 1; fi
}

apt_install() { # the packages are looked up first, so that one that does not exist fails at once
  command -v apt-get >/dev/null || return 1
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

can_make_venv() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if can_make_venv "$name"; then command -v "$name"; return 0; fi
  done
  return 1
}

provide_python() {
  find_python >/dev/null && return 0
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    apt_install python3-venv || fail "python3 has no venv module, and apt could not install python3-venv (no root, no sudo or no network)."
  else
    apt_install python3.11 python3.11-venv || apt_install python3 python3-venv || true
  fi
  find_python >/dev/null || fail "Python 3.11 or later is needed, and apt does not offer it here: install it with its venv module and run this again."
}

requirements() { # pyproject.toml's dependencies, with the one onnxruntime that fits this machine
  local runtime=onnxruntime
  if nvidia-smi >/dev/null 2>&1 || [ -d /proc/driver/nvidia ]; then runtime=onnxruntime-gpu; fi
  "$1" - "$dir/pyproject.toml" "$runtime" "${TORCH:-}" <<'PY'
import re, sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
for line in project["dependencies"] + project["optional-dependencies"]["smt"]:
    name = re.match(r"[A-Za-z0-9_.-]+", line)[0].lower()
    line = sys.argv[2] + line[len(name):] if name == "onnxruntime" else line
    print(sys.argv[3] if name == "torch" and sys.argv[3] else line)
PY
}

provide_python
python=$(find_python)
wanted=$(requirements "$python")
[ -z "${TORCH:-}" ] || constraints=$(grep -v '^torch==' "$dir/constraints.txt")
constraints=${constraints:-$(cat "$dir/constraints.txt")}
stamp=$(printf '%s\n' "$wanted" "$constraints" "$(cat "$dir/pyproject.toml")" "$dir" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$venv/bitcrown.stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -P -c 'import bitcrown' 2>/dev/null; then
  echo "bitcrown: $venv is up to date"
else
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  printf '%s\n' "$wanted" >"$work/requirements.txt"
  printf '%s\n' "$constraints" >"$work/constraints.txt"
  other=onnxruntime-gpu # both have one import name, so never both: where the machine changed, start that part anew
  case $wanted in *onnxruntime-gpu*) other=onnxruntime ;; esac
  if "$venv/bin/python" -m pip show -q "$other" >/dev/null 2>&1; then
    "$venv/bin/python" -m pip uninstall -q -y onnxruntime onnxruntime-gpu </dev/null
  fi
  if [ -n "${TORCH_INDEX:-}" ]; then
    torch=$(grep -ix 'torch[^a-z]*' <<<"$constraints" || grep -ix 'torch[^a-z]*' <<<"$wanted")
    "$venv/bin/python" -m pip install --no-deps --index-url "$TORCH_INDEX" "$torch" </dev/null
  fi
  "$venv/bin/python" -m pip install -r "$work/requirements.txt" -c "$work/constraints.txt" </dev/null
  "$venv/bin/python" -m pip install --no-deps -e "$dir" </dev/null
  printf '%s\n' "$stamp" >"$venv/bitcrown.stamp"
fi
chmod -R a+rX "$venv" "$dir/src" 2>/dev/null || true # a root install must serve an ordinary user

# The install proves itself: one bundled instance through the competition's scripts.
suite=$dir/benchmarks/quickstart
IFS=, read -r network property _ <"$suite/instances.csv"
answer=$(mktemp)
"$dir/prepare_instance.sh" v1 quickstart "$suite/$network" "$suite/$property"
BITCROWN_RECORD= "$dir/run_instance.sh" v1 quickstart "$suite/$network" "$suite/$property" "$answer" 120
verdict=$(head -n 1 "$answer")
rm -f "$answer"
echo "bitcrown: installed in $venv; $network with $property is $verdict"
case $verdict in sat | unsat) ;; *) fail "the self-test ended with '$verdict' instead of sat or unsat." ;; esac
