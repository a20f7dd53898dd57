"""Lines of the root: what neurons and rows are, as linear functions, on the whole box.

Every unstable neuron gets two lines in the inputs, ``L_j x + l_j <= a_j <= U_j x + u_j``. They hold
on the root's box, hence in every domain, so one backward pass for each neuron serves the whole
search. Rows that see one ReLU layer and nothing else are written as functions of that layer.

Legend: ``P`` cases, ``S`` rows, ``K`` unstable neurons, ``N`` neurons, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.crown import Backward, output_seeds
from bitcrown.bounds.intermediate import Enclosure, LayerBounder, undecided_places
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import Network, elements

PAD = 1e-11
"""More than the rounding error of any sum here, relative to its absolute terms."""
LOST = 1e-295
"""More than its products can lose below the smallest normal number."""


class NeuronLines:
    """Root lines of the neurons ``index [K]`` (unstable ones): ``L``, ``U`` ``[K, n]``, ``l``,
    ``u`` ``[K]``; ``width [K]`` is how wide the root's own bounds of them are."""

    def __init__(self, network: Network, layout: Layout, enclosure: Enclosure, memory: int) -> None:
        low, up, index, offset, width = [], [], [], [], []
        backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
        bounder = LayerBounder(network, memory)
        for node in layout.nodes:
            if node.op != "Relu":
                continue
            source = node.inputs[0]
            where = layout.neuron_at[source]
            flat = undecided_places(node, source, enclosure.bounds)
            if not len(flat):
                continue
            ends = enclosure.bounds[source]
            width.append((ends[1] - ends[0]).flatten()[flat])
            shape, size = network.graph.nodes[source].shape, network.graph.nodes[source].size
            step = max(1, bounder.rows_per_pass(1) // 2)
            for begin in range(0, len(flat), step):
                part = flat[begin : begin + step]
                unit = torch.zeros(len(part), size, dtype=network.dtype, device=network.device)
                unit[torch.arange(len(part), device=part.device), part] = 1
                # Lower lines of a_j and of -a_j: the latter negated is the upper line.
                lines = backward.run({source: torch.cat([unit, -unit]).reshape(1, -1, *shape)})
                reach = torch.maximum(*(enclosure_inputs(network, enclosure)))
                # The line as stored must hold in real arithmetic: its error leaves the constant.
                error = lines.error[0] + bounder.gamma * (
                    lines.coefficient[0].abs() @ reach + lines.constant[0].abs()
                )
                error = error + LOST
                constant, count = lines.constant[0] - error, len(part)
                coefficient, constant = _without_unbounded(lines.coefficient[0], constant)
                low.append(coefficient[:count])
                up.append(-coefficient[count:])
                offset.append(torch.stack([constant[:count], -constant[count:]]))
                index.append(part + where.start)
        n = network.graph.n_inputs
        empty = torch.zeros(0, n, dtype=network.dtype, device=network.device)
        self.L, self.U = torch.cat([empty, *low]), torch.cat([empty, *up])
        both = torch.cat([empty.new_zeros(2, 0), *offset], dim=1)
        self.l, self.u = both[0], both[1]
        self.width = torch.cat([empty.new_zeros(0), *width])
        self.index = torch.cat([torch.zeros(0, dtype=torch.int64, device=network.device), *index])


def _without_unbounded(coefficient: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Lower lines that are not finite say nothing: coefficient 0, constant ``-inf``."""
    is_known = torch.isfinite(coefficient).all(dim=1) & torch.isfinite(constant)
    return torch.where(is_known.unsqueeze(1), coefficient, 0.0), torch.where(
        is_known, constant, -torch.inf
    )


def enclosure_inputs(network: Network, enclosure: Enclosure) -> tuple[Tensor, Tensor]:
    """Largest absolute value of each flat input at its two ends: two ``[n]``."""
    low = torch.cat([enclosure.bounds[name][0].reshape(-1) for name in network.graph.inputs])
    up = torch.cat([enclosure.bounds[name][1].reshape(-1) for name in network.graph.inputs])
    return low.abs(), up.abs()


def last_layer(network: Network, rows: Tensor) -> tuple[Tensor, Tensor, str] | None:
    """Rows ``[P, S, m]`` as affine functions of one ReLU layer:
    ``(c [P, S, size], rest [P, S], ReLU node)``.

    None where the outputs also depend on something else.
    """
    # A backward pass in which only affine nodes may be passed, until one ReLU is all that is left.
    pending = dict(output_seeds(network, rows))
    constant = rows.new_zeros(rows.shape[:2])
    for node in reversed(list(network.graph.nodes.values())):
        if len(pending) == 1 and node.name in pending and node.op == "Relu":
            return elements(pending[node.name], 2), constant, node.name
        a = pending.pop(node.name, None)
        if a is None:
            continue
        if node.name in network.graph.inputs or not network.rows[node.name].is_affine:
            return None
        constant = constant + elements(a, 2) @ network.offset(node).flatten()
        parts = network.adjoint(node, a.flatten(0, 1)) if node.inputs else []
        for source, part in zip(node.inputs, parts, strict=True):
            part = part.reshape(*rows.shape[:2], *part.shape[1:])
            pending[source] = pending[source] + part if source in pending else part
    return None
