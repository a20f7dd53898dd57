# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Certified training, small
#
# A network that was trained for accuracy alone is seldom provably robust: its neurons are unstable
# over small boxes, and bounds grow from layer to layer. *Certified training* minimises the loss of
# the worst logits that bounds allow. Here the bounds are plain intervals (IBP), written out in ten
# lines, on a problem of two inputs; `bitcrown train` does it with CROWN-IBP on residual networks.

# %%
import numpy as np
import torch
from torch import nn

import bitcrown

EPS = 0.1
random = np.random.default_rng(1)
points = torch.from_numpy(random.uniform(-1, 1, (400, 2)).astype(np.float32))
points = points[(points.norm(dim=1) - 0.7).abs() > 0.15]  # a margin between the classes
labels = (points.norm(dim=1) > 0.7).long()


def fresh() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)
    )


# %% [markdown]
# ## Worst logits
#
# Through an affine layer a box with centre `c` and radius `r` becomes `W c + b -+ |W| r`, through a
# ReLU both ends are clipped. The worst logits take the lower end for the true class and the upper
# end for the other.


# %%
def worst_logits(network: nn.Sequential, centre: torch.Tensor, eps: float) -> torch.Tensor:
    radius = torch.full_like(centre, eps)
    for layer in network:
        if isinstance(layer, nn.Linear):
            centre, radius = layer(centre), radius @ layer.weight.abs().T
        else:
            low, high = (centre - radius).relu(), (centre + radius).relu()
            centre, radius = (low + high) / 2, (high - low) / 2
    true = nn.functional.one_hot(labels, 2).bool()
    return torch.where(true, centre - radius, centre + radius)


def trained(certified: bool) -> nn.Sequential:
    network = fresh()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(400):
        eps = EPS * min(1, step / 200) if certified else 0  # the radius grows slowly
        optimiser.zero_grad()
        nn.functional.cross_entropy(worst_logits(network, points, eps), labels).backward()
        optimiser.step()
    return network


natural, robust = trained(False), trained(True)
for name, network in (("natural", natural), ("certified", robust)):
    clean = (network(points).argmax(1) == labels).float().mean().item()
    proved = (worst_logits(network, points, EPS).argmax(1) == labels).float().mean().item()
    print(f"{name:10} clean {clean:.3f}, proved by intervals {proved:.3f}")

# %% [markdown]
# ## What the verifier says
#
# Intervals are the weakest bounds. bitcrown proves more points of the same networks, but training
# is what makes the difference. We ask about a few points each.

# %%
sample = range(0, len(points), 60)


def proved_of(network: nn.Sequential) -> int:
    answers = [
        bitcrown.robust(network, points[k], EPS, label=int(labels[k]), limits=None, cpu_seconds=10)
        for k in sample
    ]
    return sum(answer.status == "unsat" for answer in answers)


by_intervals = {
    name: int((worst_logits(network, points, EPS).argmax(1) == labels)[list(sample)].sum())
    for name, network in (("natural", natural), ("certified", robust))
}
by_search = {"natural": proved_of(natural), "certified": proved_of(robust)}
print("of", len(sample), "points, intervals:", by_intervals, "bitcrown:", by_search)
assert all(by_search[name] >= by_intervals[name] for name in by_search)
assert by_intervals["certified"] > by_intervals["natural"]
assert by_search["certified"] >= by_search["natural"]
