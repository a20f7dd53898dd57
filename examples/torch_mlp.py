# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # A torch network: from training to a proof
#
# We train a small perceptron to tell two interleaved half circles apart, and ask where its
# decision is safe. Two inputs are few enough to see everything, and the same calls work on images.

# %%
import numpy as np
import torch
from torch import nn

import bitcrown

torch.manual_seed(0)
angles = torch.linspace(0, torch.pi, 100)
upper = torch.stack([angles.cos(), angles.sin()], 1)
lower = torch.stack([1 - angles.cos(), 0.4 - angles.sin()], 1)
points = torch.cat([upper, lower]) + 0.05 * torch.randn(200, 2)
labels = torch.cat([torch.zeros(100), torch.ones(100)]).long()

network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
optimiser = torch.optim.Adam(network.parameters(), 1e-2)
for _ in range(300):
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(points), labels).backward()
    optimiser.step()

accuracy = (network(points).argmax(1) == labels).float().mean().item()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.98

# %% [markdown]
# ## One point
#
# `bitcrown.robust` takes the module as it is, and one input without a batch axis. These inputs are
# no pixels, so they have no range (`limits=None`). The answer is a proof, a counterexample, or an
# open question.

# %%
top = points[50]
near = bitcrown.robust(network, top, "0.05", limits=None, cpu_seconds=30)
print(near.sentence())
assert near.status == "unsat", "nothing within 0.05 changes the class: proved"

far = bitcrown.robust(network, top, "1.5", limits=None, cpu_seconds=30)
print(far.sentence())
assert far.status == "sat"

# %% [markdown]
# ## The counterexample is real
#
# It was replayed with onnxruntime on the exported file before it was returned. We need not believe
# that: torch says the same, and the point lies within the radius.

# %%
found = torch.from_numpy(np.asarray(far.adversarial, dtype=np.float32)).reshape(1, 2)
print("counterexample", found.tolist(), "class", network(found).argmax(1).item())
assert network(found).argmax(1).item() == far.seen != far.label
assert (found - top).abs().max().item() <= 1.5 + 1e-6

# %% [markdown]
# ## How far?
#
# `radius=True` searches between the largest radius that is proved and the smallest that is broken.
# Attacks and proofs meet in the middle; what lies between the two numbers is open.

# %%
searched = bitcrown.robust(network, top, "1.5", limits=None, radius=True, cpu_seconds=30)
print(searched.sentence())
assert searched.proved is not None and searched.broken is not None
assert 0.05 <= float(searched.proved) < float(searched.broken) <= 1.5
