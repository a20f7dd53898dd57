"""Commands and blocks of Python in one process that has loaded everything already.

``bitcrown`` needs seconds of computing to load torch, which a page of ten commands would pay ten
times. Here a server loads once and makes a fork of itself for each command: with the caller's own
folder, environment and output, and the same ``main`` as the installed command. That the installed
one starts is shown by ``tests/shell/test_wheel.py``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({place!r})
    words = json.dumps([{kind!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(words).to_bytes(8, "big")], [0, 1, 2])
    line.sendall(words)
    code = line.recv(1)
sys.exit(code[0] if code else 70)
"""


@contextmanager
def warm_commands(folder: Path) -> Iterator[Path]:
    """A folder with the programs ``bitcrown`` and ``python-block TEXT``, for the PATH of tests."""
    place, programs = str(folder / "line"), folder / "programs"
    programs.mkdir()
    for name, kind in (("bitcrown", "command"), ("python-block", "block")):
        text = _CLIENT.format(python=sys.executable, place=place, kind=kind)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    sources = str(Path(__file__).resolve().parents[1] / "src")
    with subprocess.Popen(
        [sys.executable, "-P", __file__, place],
        env=os.environ | {"PYTHONPATH": sources},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield programs
        finally:
            server.terminate()


def _serve(place: str) -> None:
    import onnx
    import onnxruntime
    import torch

    import bitcrown.cli.main
    import bitcrown.evaluation.around
    import bitcrown.evaluation.runs
    import bitcrown.search.decision

    loaded = onnx, onnxruntime, torch, bitcrown
    assert loaded
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        print("ready", flush=True)
        while True:
            line, _ = server.accept()
            with suppress(ChildProcessError):  # the ends of earlier ones
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not os.fork():
                server.close()
                _answer(line)
            line.close()


def _answer(line: socket.socket) -> NoReturn:
    """Run what the other end of ``line`` asks for; does not return."""
    size, descriptors, _, _ = socket.recv_fds(line, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += line.recv(1 << 16)
    kind, words, folder, environment = json.loads(data)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["bitcrown", *words]
    code = 1
    try:
        if kind == "command":
            from bitcrown.cli.main import main

            code = main()
        else:
            exec(compile(words[0], "<block>", "exec"), {"__name__": "__main__"})
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 (of a block: shown as the interpreter would)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    line.sendall(bytes([code]))
    # (Threads of libraries, which a fork does not have, are not waited for.)
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
