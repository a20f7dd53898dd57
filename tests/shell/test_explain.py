"""Every answer explains itself: sentences and JSON about what is open, progress lines, and what
inspect says before a decision."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT, Scripts
from onnx import TensorProto, helper, numpy_helper
from test_cli import cli

import bitcrown
from bitcrown.cli.explain import Ending, explanation, fact_words
from bitcrown.cli.main import main
from bitcrown.cli.options import JSON_FORMAT, Verbosity, json_text
from bitcrown.cli.progress import PhaseLine
from bitcrown.verdict import Reason, Status

SUITE = ROOT / "benchmarks" / "quickstart"
NETWORK = SUITE / "onnx" / "cartpole.onnx"
PROPERTY = SUITE / "vnnlib" / "cartpole_case_unsafe_3.vnnlib"


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason])
def test_every_reason_has_an_advice(reason: Reason) -> None:
    for phase in ("read", "root bounds", "neuron split", ""):
        phases = {phase: 3.0} if phase else {}
        said = explanation(Ending(Status.UNKNOWN, str(reason), phases=phases))
        assert said[-1].startswith("try: ") and len(said[-1]) > 20


def test_answers_need_no_explanation() -> None:
    for status in (Status.SAT, Status.UNSAT, Status.ERROR):
        assert explanation(Ending(status, phases={"read": 9.0})) == []


def test_open_domains_and_the_worst_bound() -> None:
    counters = {"open": 37, "domains": 412, "worst": -0.125, "cases": 9}
    phases = {"neuron split": 20.0, "read": 1.5, "alpha": 0.01}
    said = explanation(Ending(Status.TIMEOUT, Reason.DEADLINE, "", "", phases, counters))
    assert said[0] == "time: neuron split 20.0 s, read 1.5 s"
    assert (
        said[1]
        == "open: 37 domains are open, 412 were bounded, the worst bound is -0.125 (0 would do)"
    )
    # What the last phase of a worker that was ended had told stands above older numbers.
    facts = {"open": 5, "worst": -0.5}
    said = explanation(Ending(Status.TIMEOUT, Reason.DEADLINE, "", "", phases, counters, facts))
    assert "5 domains" in said[1] and "-0.5" in said[1]
    for worst in (float("nan"), float("-inf"), 0.25, "much"):
        said = explanation(Ending(Status.TIMEOUT, counters={"open": 1, "worst": worst}))
        assert said[0] == "open: 1 domains are open"


def test_cases_that_bounds_left_open() -> None:
    said = explanation(Ending(Status.TIMEOUT, counters={"cases": 9, "open_after_crown": 3}))
    assert said[0] == "open: 3 of 9 cases are open"


def test_json_has_no_nan() -> None:
    text = json_text("verify", {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": Path("x")}})
    found = json.loads(text, parse_constant=pytest.fail)
    expected = {"a": None, "b": [None, 1.5], "c": {"d": "x"}}
    assert found == {"format": JSON_FORMAT, "command": "verify", **expected}


def test_timeout_of_a_real_search_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    files = [SUITE / "onnx" / "sat_v44_c75.onnx", SUITE / "vnnlib" / "sat_v44_c75.vnnlib"]
    words = [str(path) for path in files] + ["--cpu-seconds", "1.5", "--json"]
    code = main(["verify", *words])
    found = json.loads(capfd.readouterr().out)
    assert found["network"] == str(files[0]) and found["seconds"] > 0
    if found["status"] in ("sat", "unsat"):
        assert code == 0 and found["explanation"] == []
    else:
        assert code == 3 and any(said.startswith("try: ") for said in found["explanation"])


def test_quiet_says_the_answer_alone(scripts: Scripts) -> None:
    for mode, word in (("unsat", "unsat"), ("exit", "unknown")):
        done = cli(scripts, mode, "verify", "net.onnx", "prop.vnnlib", "-q")
        assert (done.stdout, done.stderr) == (f"{word}\n", "")


def test_worker_that_was_ended_has_told_how_far_it_came(scripts: Scripts) -> None:
    done = cli(scripts, "children", "verify", "net.onnx", "prop.vnnlib", "--timeout", "2", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["status"]) == (3, "timeout")
    assert "open: 7 domains are open" in found["explanation"]
    assert found["counters"] == {"splits": 12}


def test_error_in_json(scripts: Scripts) -> None:
    done = cli(scripts, "unsat", "verify", "gone.onnx", "prop.vnnlib", "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["status"] == "error" and "gone.onnx does not exist" in found["reason"]
    done = cli(scripts, "error", "verify", "net.onnx", "prop.vnnlib", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["status"]) == (2, "error")
    assert found["detail"] == "the network file ends in the middle of node 3"


def test_progress_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"domains": 4, "open": 2, "worst": -0.5, "counters": {"x": 1}}
    for say, shown in ((Verbosity(), False), (Verbosity(is_verbose=True), True)):
        line = PhaseLine(say)
        line.report("neuron split", facts)
        line.next = 0.0  # ten seconds are over
        line.report("neuron split", facts)
        line.report("neuron split", facts)
        line.end()
        said = capsys.readouterr().err.splitlines()
        assert len(said) == int(shown)
        if shown:
            assert said[0].endswith(" s, neuron split: 4 bounded, 2 open, worst bound -0.5")


def test_progress_goes_on_while_nothing_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    line = PhaseLine(Verbosity(is_verbose=True))
    line.report("root bounds", {})
    line.next = 0.0
    line.tick()
    said = ""
    while not said:  # as long as the machine takes
        said += capsys.readouterr().err
    line.end()
    assert said.endswith(" s, root bounds\n")
    line.report("root bounds", {})
    assert not capsys.readouterr().err


def test_facts_in_words() -> None:
    assert fact_words({"boxes": 3, "left": 4, "name": "x", "flag": True}) == ("3 bounded, 4 open")


# -- inspect and bounds ----------------------------------------------------------------------------


def test_inspect_and_bounds_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(NETWORK), str(PROPERTY), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["obstacles"] == [] and len(found["networks"]) == 1
    assert found["outlook"][0].startswith("4 of 4 inputs vary")
    assert main(["bounds", str(NETWORK), str(PROPERTY), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lower, upper = bitcrown.bound(bitcrown.load(NETWORK, PROPERTY))
    assert (found["lower"], found["upper"]) == (lower.ravel().tolist(), upper.ravel().tolist())


def saved(path: Path, nodes: list[onnx.NodeProto], shape: list[object]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32([[1, 2], [3, -4]]), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_inspect_takes_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    pair = [("f", str(saved(tmp_path / "a.onnx", nodes, [1, 2]))), ("g", str(NETWORK))]
    assert main(["inspect", repr(pair)]) == 0
    said = capsys.readouterr().out
    assert f"network f ({tmp_path / 'a.onnx'}):" in said and "network g (" in said


def test_inspect_says_every_obstacle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two operators without a rule in two files: all are named."""
    paths = []
    for name, op in (("a", "Det"), ("b", "NonZero")):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"])]
        nodes += [helper.make_node(op, ["m"], ["y"], name=f"node_{name}")]
        paths.append(str(saved(tmp_path / f"{name}.onnx", nodes, [2, 2])))
    assert main(["inspect", repr([("f", paths[0]), ("g", paths[1])])]) == 2
    said = capsys.readouterr().err
    assert "a.onnx" in said and "Det" in said and "b.onnx" in said and "NonZero" in said


def test_free_extents_are_not_read_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = str(saved(tmp_path / "free.onnx", nodes, ["n", 3, "h", "w"]))
    assert main(["inspect", path]) == 2
    assert "free (n, 3, h, w)" in capsys.readouterr().err
    assert main(["inspect", path, "--input-shape", "1,3,8,8"]) == 0
    assert "input x [1, 3, 8, 8]" in capsys.readouterr().out
    assert main(["inspect", path, "--input-shape", "1,3,8,x"]) == 2
    assert main(["inspect", path, "--input-shape", "1,4,8,8"]) == 2
    assert "does not fit the file's input (n, 3, h, w)" in capsys.readouterr().err
    batch = str(saved(tmp_path / "batch.onnx", nodes, ["n", 3]))
    assert main(["inspect", batch]) == 0
    assert main(["inspect", batch, "--input-shape", "2,3"]) == 0
    assert "input x [2, 3]" in capsys.readouterr().out


def test_free_extents_of_several_inputs_have_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.onnx"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", f"of {name}"])
        for name in "uvy"
    ]
    graph = helper.make_graph(
        [helper.make_node("Concat", ["u", "v"], ["y"], axis=1)], "g", ends[:2], ends[2:]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    both = ["--input-shape", "v=1,3", "--input-shape", "u=2"]
    assert main(["inspect", str(path), *both]) == 0
    said = capsys.readouterr().out
    assert "input u [1, 2]" in said and "input v [1, 3]" in said and "output y [1, 5]" in said
    assert main(["inspect", str(path), "--input-shape", "1,3"]) == 2
    assert "none of the inputs u, v: give NAME=N,..." in capsys.readouterr().err
    assert main(["inspect", str(path), "--input-shape", "v=1,3,1"]) == 2
    assert "does not fit the file's input (n, of v)" in capsys.readouterr().err
    assert main(["inspect", str(path), "--input-shape", "v=1,3"]) == 2
    assert "free (n, of u)" in capsys.readouterr().err


def test_free_extents_are_settled_by_the_property_or_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is about the network of the declared shape: at four pixels of at most 1, the mean
    of their rectified values is at most 1; of one pixel alone, read as 1 x 1, nothing would fit."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    path = str(saved(tmp_path / "free.onnx", nodes, ["n", 1, "h", "w"]))
    head = "(vnnlib-version <2.0>)\n(declare-network N\n(declare-input X float32 [1,1,2,2])\n"
    text = head + "(declare-output Y float32 [1,1,1,1]))\n"
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        text += f"(assert (and (>= X[0,0,{i},{j}] 0) (<= X[0,0,{i},{j}] {i + j})))\n"
    asked = tmp_path / "p.vnnlib"
    asked.write_text(text + "(assert (>= Y[0,0,0,0] 0.5))\n")
    assert main(["inspect", path, str(asked)]) == 0
    assert "input x [1, 1, 2, 2]" in capsys.readouterr().out
    lower, upper = bitcrown.bound(bitcrown.load(path, asked))
    assert lower.ravel() == pytest.approx([0]) and upper.ravel() == pytest.approx([1])
    assert bitcrown.verify(bitcrown.load(path, asked), seconds=60).status is Status.SAT
    asked.write_text(text + "(assert (>= Y[0,0,0,0] 1.125))\n")
    assert bitcrown.verify(bitcrown.load(path, asked), seconds=60).status is Status.UNSAT
    # Numbers alone do not say which extents they have.
    lines = [f"(declare-const X_{i} Real)" for i in range(4)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_{i} 0))\n(assert (<= X_{i} 1))" for i in range(4)]
    asked.write_text("\n".join([*lines, "(assert (>= Y_0 1.125))"]))
    assert main(["bounds", path, str(asked)]) == 2
    assert "give --input-shape 1,1,h,w" in capsys.readouterr().err
    assert main(["bounds", path, str(asked), "--input-shape", "1,1,4,1"]) == 0
    number, low, high = capsys.readouterr().out.split()
    assert (number, float(low), float(high)) == ("0", pytest.approx(0), pytest.approx(1))


def test_bounds_of_another_networks_property(capsys: pytest.CaptureFixture[str]) -> None:
    """It was a traceback: nothing had compared the two."""
    assert main(["bounds", str(NETWORK), str(SUITE / "vnnlib" / "prop_3.vnnlib")]) == 2
    assert "use the network that it is about" in capsys.readouterr().err


def test_outlook_measures_what_bounds_lose(tmp_path: Path) -> None:
    """One Relu over [-1, 1]: its lines are apart by 1 at the most with the default slopes (upper
    line (x + 1) / 2, lower line x or 0)."""
    from bitcrown.api import outlook

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.float32([[1, 2], [3, -4]]), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    lines = [f"(declare-const {name}_{i} Real)" for name in "XY" for i in (0, 1)]
    lines += ["(assert (<= X_0 1))", "(assert (>= X_0 -1))", "(assert (<= X_1 3))"]
    lines += ["(assert (>= X_1 2))", "(assert (<= Y_0 Y_1))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    found = outlook(bitcrown.load(tmp_path / "net.onnx", tmp_path / "p.vnnlib"))
    assert found.obstacles == ()
    assert found.sentences[1].startswith(
        "Relu: 1 of 2 elements are loose on this box, lines up to 1 "
    )


def completed(scripts: Scripts, *words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    line = " ".join(shlex.quote(word) for word in words)
    command = f"""
    eval "$('{sys.executable}' -m bitcrown completion bash)"
    COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _bitcrown; echo "${{COMPREPLY[*]}}" """
    done = subprocess.run(
        ["bash", "-euc", command], env=scripts.environment("unsat"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_completion(scripts: Scripts) -> None:
    assert completed(scripts, "bitcrown", "ver") == ["verify"]
    assert "--cpu-seconds" in completed(scripts, "bitcrown", "verify", "x", "--c")
    assert completed(scripts, "bitcrown", "bounds", "--te") == ["--tensor"]
    assert completed(scripts, "bitcrown", "bounds", "fi") == []
    for shell in ("zsh", "fish"):
        said = cli(scripts, "unsat", "completion", shell)
        assert said.returncode == 0 and "cpu-seconds" in said.stdout
