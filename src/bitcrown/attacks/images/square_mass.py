"""The moves of the Square attack for L2 and L1: mass is taken from one window and piled up in
another.

Andriushchenko et al. (2020), algorithm 3 and section 3.3, with ``p`` = 2; for L1 the same with
``p`` = 1, as AutoAttack has it. ``nu`` is the perturbation so far. In every channel the content of
window ``W1`` becomes ``nu_W1 / ||nu_W1||_p +- bump`` (normalised), of length ``(||nu_(W1 u W2)||^p
+ (eps^p - ||nu||^p) / C)^(1/p)``: all that the two windows held and the channel's part of what the
ball still leaves; ``W2`` becomes zero. The bump has two halves of opposite sign, each highest in
its middle and falling off in nested rectangles, ``sum_{k >= d} 1 / (k + 1)^q`` at Chebyshev
distance ``d`` from the middle, ``q`` = 2 for L2 and 4 for L1. The start tiles the image with such
bumps, five by five.

Legend: ``R`` images, ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.attacks.images.ball import BallAround
from bitcrown.attacks.images.noise import Keys, uniforms
from bitcrown.attacks.images.windows import PLACES, edges, places

_TINY = 1e-12
_POWER = {"L2": 2, "L1": 1}
_FALL = {"L2": 2, "L1": 4}
_INSIDE = 1.0 - 1e-6
"""Share of the radius that is used: less than rounding adds up to, or every point would have to be
projected anew."""


def tiled_start(region: BallAround, keys: Keys) -> Tensor:
    """Bumps of random sign and orientation side by side, ``[R, C, H, W]``, on the sphere."""
    clean = region.clean
    count, channels, height, width = clean.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    coin = torch.from_numpy(uniforms(keys, (channels + 1) * rows * columns) > 0.5).to(clean.device)
    coin = coin.reshape(count, channels + 1, rows, 1, columns, 1)
    bump = two_bumps(side, clean, region.ball.norm)
    tile = torch.where(
        coin[:, -1:], bump.reshape(1, 1, 1, side, 1, side), bump.T.reshape(1, 1, 1, side, 1, side)
    )
    tiles = torch.where(coin[:, :-1], tile, -tile).reshape(
        count, channels, rows * side, columns * side
    )
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    noise = torch.zeros_like(clean)
    noise[:, :, top : top + rows * side, left : left + columns * side] = tiles
    return _on_sphere(region, noise)


def moved_mass(region: BallAround, x: Tensor, random: Tensor, share: float) -> Tensor:
    """A changed ``x [R, C, H, W]``, on the sphere; ``random [R, J]`` chooses."""
    _, channels, height, width = x.shape
    side = max(round((share * height * width) ** 0.5), 3)
    side = min(side + (side % 2 == 0), height, width)
    sides = torch.full((len(x),), side, device=x.device)
    corner = places(random[:, :2], sides, height, width)
    mask = _window(corner, sides, height, width)
    emptied = _window(places(random[:, 2:4], sides, height, width), sides, height, width)
    nu = x - region.clean
    sign = (
        torch.where(random[:, PLACES : PLACES + channels] > 0.5, 1.0, -1.0)
        .to(x.dtype)
        .reshape(-1, channels, 1, 1)
    )
    # The new content of W1 before it gets its length: its own direction plus or minus the bump, of
    # length 1 each, so that neither drowns the other.
    norm, eps = region.ball.norm, region.ball.eps
    power = _POWER[norm]
    bump = _placed(two_bumps(side, x, norm), corner, random[:, 4] > 0.5, height, width)
    inside = torch.where(mask, nu, torch.zeros_like(nu))
    pile = torch.where(
        mask, inside / (_length(inside, norm) + _TINY) + sign * bump, torch.zeros_like(nu)
    )
    # Lengths add up as p-th powers. What both windows hold and this channel's part of what the ball
    # leaves goes to W1, W2 becomes zero: all channels together have eps^p again.
    held = _mass(torch.where(mask | emptied, nu, torch.zeros_like(nu)), norm)
    unused = (eps**power - _mass(nu, norm).sum(dim=1, keepdim=True)).clamp(min=0.0)
    pile = pile / (_length(pile, norm) + _TINY) * (held + unused / channels) ** (1 / power)
    return _on_sphere(
        region, torch.where(mask, pile, torch.where(emptied, torch.zeros_like(nu), nu))
    )


def _window(corner: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """``[R, 1, H, W]`` bool: the pixels of the square of ``side [R]`` at ``corner [R, 2]``."""
    rows, columns = edges(corner, side, height, width)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def two_bumps(side: int, like: Tensor, norm: str) -> Tensor:
    """``[side, side]`` of length 1: the upper half a bump, the lower one of opposite sign."""
    upper = side // 2
    halves = (
        [_bump(upper, side, norm), -_bump(side - upper, side, norm)]
        if upper
        else [_bump(1, side, norm)]
    )
    whole = torch.cat(halves)
    return (whole / _length(whole, norm)).to(device=like.device, dtype=like.dtype)


def _bump(height: int, width: int, norm: str) -> Tensor:
    row = (torch.arange(height) - height // 2).abs().unsqueeze(1)
    column = (torch.arange(width) - width // 2).abs().unsqueeze(0)
    # tails[d] = sum_{k >= d} 1 / (k + 1)^q, for every Chebyshev distance d that occurs.
    terms = (
        1.0 / torch.arange(1.0, max(height, width) // 2 + 2.0, dtype=torch.float64) ** _FALL[norm]
    )
    tails = terms.flip(0).cumsum(0).flip(0)
    bump = tails[torch.maximum(row, column)]
    return bump / _length(bump, norm)


def _placed(bump: Tensor, corner: Tensor, is_turned: Tensor, height: int, width: int) -> Tensor:
    """``[R, 1, H, W]``: the bump, or its transpose, at ``corner [R, 2]``; outside, anything."""
    side = len(bump)
    row = (torch.arange(height, device=bump.device) - corner[:, :1]).clamp(0, side - 1).unsqueeze(2)
    column = (
        (torch.arange(width, device=bump.device) - corner[:, 1:]).clamp(0, side - 1).unsqueeze(1)
    )
    return torch.where(is_turned.reshape(-1, 1, 1), bump[column, row], bump[row, column]).unsqueeze(
        1
    )


def _mass(nu: Tensor, norm: str) -> Tensor:
    """``sum |nu|^p`` over the pixels of each channel."""
    return (nu.abs() if norm == "L1" else nu * nu).sum(dim=(-2, -1), keepdim=True)


def _length(nu: Tensor, norm: str) -> Tensor:
    mass = _mass(nu, norm)
    return mass if norm == "L1" else mass.sqrt()


def _on_sphere(region: BallAround, nu: Tensor) -> Tensor:
    ball = region.ball
    length = _mass(nu, ball.norm).sum(dim=1, keepdim=True) ** (1 / _POWER[ball.norm])
    radius = _INSIDE * ball.eps if ball.norm == "L1" else ball.eps
    return region.project(region.clean + nu * (radius / (length + _TINY)))
