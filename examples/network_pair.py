# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Two networks: did pruning change anything?
#
# A smaller network is to replace a larger one. How far apart can their outputs be over a whole set
# of inputs, not on a test set only? VNN-LIB 2 has properties about several networks; this one is
# about a network and its pruned copy.

# %%
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import bitcrown

FOLDER = Path(tempfile.mkdtemp())
random = np.random.default_rng(0)
first = random.normal(size=(3, 8)).astype(np.float32)
second = random.normal(size=(8, 1)).astype(np.float32)


def saved(name: str, first: np.ndarray, second: np.ndarray) -> Path:
    """y = relu(x W) V as an ONNX file."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "V"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(first, "W"), numpy_helper.from_array(second, "V")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, FOLDER / f"{name}.onnx")
    return FOLDER / f"{name}.onnx"


# The neuron with the smallest weight behind it is cut.
least = int(np.abs(second[:, 0] * np.abs(first).sum(0)).argmin())
full = saved("full", first, second)
pruned = saved("pruned", np.delete(first, least, 1), np.delete(second, least, 0))

# %% [markdown]
# ## The property
#
# Two networks are declared, each with its own input and output. The asserts tie the inputs together
# and look for a violation: outputs that differ by more than `gap`. (Networks of the same file are
# `(equal-to f)`; then a property can compare two inputs of one network, say for monotonicity.)


# %%
def prop(gap: float) -> Path:
    text = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,3]) (declare-output Y float32 [1,1]))
(declare-network g (declare-input U float32 [1,3]) (declare-output V float32 [1,1]))
"""
    for k in range(3):
        text += f"(assert (and (>= X[0,{k}] -1.0) (<= X[0,{k}] 1.0) (== U[0,{k}] X[0,{k}])))\n"
    text += f"(assert (or (> (- Y[0,0] V[0,0]) {gap}) (> (- V[0,0] Y[0,0]) {gap})))\n"
    path = FOLDER / "gap.vnnlib"
    path.write_text(text)
    return path


def verdict(gap: float) -> bitcrown.Verdict:
    problem = bitcrown.load({"f": full, "g": pruned}, prop(gap))
    return bitcrown.verify(problem, cpu_seconds=30)


# %% [markdown]
# ## How much did pruning change?
#
# The networks differ by what the cut neuron adds: `relu(x w) v`, which over the box is at most
# `|v| sum |w|`, and that is attained in a corner. So we know the truth, and see that the verifier
# knows it too: a little above it there is a proof, a little below it a counterexample.

# %%
truth = abs(float(second[least, 0])) * float(np.abs(first[:, least]).sum())
above, below = verdict(round(1.1 * truth, 6)), verdict(round(0.9 * truth, 6))
print(f"largest difference {truth:.4f}; above it {above.status}, below it {below.status}")
assert above.status == "unsat"
assert below.status == "sat"

# %% [markdown]
# ## The counterexample
#
# One input for both networks, and outputs further apart than asked for, as onnxruntime computes
# them.

# %%
x, u = below.witness.inputs.values()
y, v = below.witness.outputs.values()
print("input", np.asarray(x), "outputs", np.asarray(y), np.asarray(v))
assert np.array_equal(np.asarray(x), np.asarray(u))
assert abs(float(np.ravel(y)[0]) - float(np.ravel(v)[0])) > 0.9 * truth - 1e-5
