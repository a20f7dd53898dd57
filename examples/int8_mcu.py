# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # A network of integers for a microcontroller
#
# On a microcontroller a network computes with integers: weights and activations have a few bits,
# sums are exact, and every layer ends with rounding and clipping. Bounds of real numbers do not say
# what such a network does, because a rounding can flip a close decision. bitcrown decides it as the
# integers it computes. The network here has 6 bits (784-64-32, from the benchmark of *Scalable
# Verification of Quantized Neural Networks*, AAAI 2021), its images are MNIST's.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import bitcrown
from bitcrown.cli.main import main

ROOT = Path("benchmarks/qnn_robustness")
NETWORK = ROOT / "networks" / "mnist_mlp.onnx"
digits = np.load(ROOT / "mnist_20.npz")
images, labels = digits["images"], digits["labels"]

# %% [markdown]
# ## Robust, exactly
#
# The input is 8-bit pixels, so a radius of 2/255 is two levels. There is no tolerance anywhere: the
# box is a set of integers, and the proof is integer arithmetic.

# %%
answer = bitcrown.robust(NETWORK, images[0][None], "2/255", cpu_seconds=30)
print(answer.sentence())
assert answer.status == "unsat" and answer.label == labels[0]

# %% [markdown]
# ## A counterexample on the lattice
#
# At 40 levels the network is wrong somewhere. The counterexample is a picture of whole levels, and
# onnxruntime, which is what runs on the device's simulator too, says the other class. Gradients are
# of no use here (a staircase is flat); the attack steps on the lattice and evaluates exactly.

# %%
answer = bitcrown.robust(NETWORK, images[0][None], "40/255", cpu_seconds=30)
print(answer.sentence())
assert answer.status == "sat"
levels = np.rint(np.asarray(answer.adversarial, dtype=float) * 255).astype(int).reshape(28, 28)
assert abs(levels - images[0].astype(int)).max() <= 40

session = onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
wanted = session.get_inputs()[0]
kind = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[wanted.type]
shape = [extent if isinstance(extent, int) else 1 for extent in wanted.shape]
(scores,) = session.run(None, {wanted.name: levels.astype(kind).reshape(shape)})
print("onnxruntime says", scores.reshape(-1)[:10].argmax())
assert scores.reshape(-1).argmax() == answer.seen != answer.label

# %% [markdown]
# ## A proof for somebody else
#
# An `unsat` can be written down: integer slopes and multipliers, splits, intervals. The checker
# repeats the steps in Python's integers, which never overflow, and reads network and property
# itself. A damaged proof is refused.

# %%
prop = ROOT / "vnnlib" / "mnist_0000_eps1.vnnlib"
with tempfile.TemporaryDirectory() as folder:
    proof = Path(folder) / "proof.json"
    files = [str(NETWORK), str(prop)]
    assert main(["verify", *files, "--certificate", str(proof), "-q", "--record", ""]) == 0
    assert main(["check-certificate", *files, str(proof)]) == 0
    document = json.loads(proof.read_text())
    document["roots"] = document["roots"][1:]
    proof.write_text(json.dumps(document))
    assert main(["check-certificate", *files, str(proof)]) == 1, "one case was left out"

# %% [markdown]
# ## Accuracy
#
# Over a data set: how many images are right, and for how many is that proved for every image within
# one level? `evaluate` counts both, and never counts an image that was broken.

# %%
evaluation = bitcrown.evaluate(
    NETWORK, images[:5, None], labels[:5], ["1/255"], attack="none", bounds="bab"
)
print(evaluation.table())
assert evaluation.record["runs"][0]["accuracy"]["bab"]["count"] == 5
