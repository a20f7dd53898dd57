# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Collision avoidance: ACAS Xu
#
# ACAS Xu advises an aircraft how to turn. Its look-up table was approximated by 45 networks of 300
# neurons, and properties of these networks became the first benchmark of the field (Katz et al.,
# *Reluplex*, 2017). Inputs are distance, two angles and two speeds, scaled to about [-0.5, 0.5];
# outputs are scores of five advisories, of which the *smallest* is given: clear of conflict, weak
# left, weak right, strong left, strong right.
#
# Property 3: if the intruder is directly ahead and moving towards us, the advice is not "clear of
# conflict". As a violation: score 0 is the smallest.

# %%
from pathlib import Path

import numpy as np
import onnxruntime

import bitcrown

ROOT = Path("benchmarks/quickstart")
NETWORK = ROOT / "onnx" / "ACASXU_run2a_1_1_batch_2000.onnx"
PROPERTY = ROOT / "vnnlib" / "prop_3.vnnlib"
print(PROPERTY.read_text()[:400])

# %% [markdown]
# ## The proof
#
# Five inputs are few, so the box of inputs is split until bounds suffice in every part. `counters`
# says how many boxes that took, `phases` where the time went.

# %%
problem = bitcrown.load(NETWORK, PROPERTY)
verdict = bitcrown.verify(problem, cpu_seconds=60)
print(verdict.status, "by", verdict.decided_by, "after", verdict.counters["boxes_bounded"], "boxes")
assert verdict.status == "unsat"

# %% [markdown]
# ## Why splitting?
#
# Bounds of the outputs over the whole box are sound, and far too wide to decide anything: the upper
# bound of score 0 is above the lower bounds of the others, and the other way round.

# %%
lower, upper = (end.reshape(-1) for end in bitcrown.bound(problem))
for number, name in enumerate(("clear", "weak left", "weak right", "strong left", "strong right")):
    print(f"{name:13} {lower[number]:9.3f} .. {upper[number]:9.3f}")
assert (lower < upper).all()
assert lower[0] < upper[1:].min(), "these bounds alone do not exclude the violation"

# %% [markdown]
# ## A property that does not hold
#
# Property 2 of network 3_1: far away, score 0 is never the *largest*. It is, and bitcrown returns
# the encounter. The witness was replayed with onnxruntime on the original file, without tolerance,
# which we repeat by hand.

# %%
network = ROOT / "onnx" / "ACASXU_run2a_3_1_batch_2000.onnx"
verdict = bitcrown.verify(bitcrown.load(network, ROOT / "vnnlib" / "prop_2.vnnlib"), cpu_seconds=60)
assert verdict.status == "sat"
(encounter,) = verdict.witness.inputs.values()
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
wanted = session.get_inputs()[0]
(scores,) = session.run(
    None, {wanted.name: np.asarray(encounter, np.float32).reshape(wanted.shape)}
)
print("encounter", np.asarray(encounter).round(4), "scores", scores.round(4))
assert scores.argmax() == 0
