"""Robustness around one input: the answer, the largest radius, and both in words.

``sat`` stands only for an input of the set itself, as float32 values, that onnxruntime gives
another class on the original file; ``unsat`` for a finished proof. The largest proved and the
smallest broken radius are found by bisection: a proof at a radius is one at every smaller one, and
a counterexample one at every larger. What is open at a radius may be closed at others on both
sides, so there are two bisections, with the open radii between their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from bitcrown.attacks.images.ball import NORMS, Ball
from bitcrown.budget import Budget
from bitcrown.errors import SettingsError
from bitcrown.evaluation.attacking import inside, pgd_attack
from bitcrown.evaluation.data.sets import unit_pixels
from bitcrown.evaluation.question import FileClassifier, LevelClassifier, Neighbourhood
from bitcrown.evaluation.radii import next_radius, radius_words
from bitcrown.model.classifier import GraphClassifier
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.device import device_of
from bitcrown.settings import Settings
from bitcrown.spec.decimals import short_text
from bitcrown.spec.robustness import vnnlib_text
from bitcrown.verdict import Reason, Status, Verdict, Witness

_STEPS, _RESTARTS = 100, 5
"""Of the attack in a ball that is no box."""
_SHARE = 8
"""A radius of a bisection has at most one part in this many of the time that is left."""
BY_ITSELF = "the input itself"


@dataclass(frozen=True, eq=False)
class Robustness:
    """What is known of one neighbourhood. ``label``: the class that is to stay; ``seen``: the class
    of the counterexample ``adversarial [C, H, W]``, which may hold in a picture's eight bits, too.
    ``proved``, ``broken``: where radii were searched, the largest proved and the smallest broken
    one (None: none was)."""

    verdict: Verdict
    name: str
    around: Neighbourhood
    label: int
    target: int | None
    limits: tuple[Fraction, Fraction] | None
    is_image: bool
    original: np.ndarray = field(repr=False)
    adversarial: np.ndarray | None = field(default=None, repr=False)
    seen: int | None = None
    holds_in_eight_bits: bool = False
    has_radius: bool = False
    proved: Fraction | None = None
    broken: Fraction | None = None

    @property
    def status(self) -> Status:
        return self.verdict.status

    def sentence(self) -> str:
        """The answer, for somebody who knows the network and not this program."""
        if self.verdict.decided_by == BY_ITSELF:
            return f"{self.name} itself is classified {self.seen}, not {self.label}."
        if self.has_radius:
            return self._radius_sentence()
        where = f"within {self._radius(self.around.eps)} of {self.name}{self._kept()}"
        if self.around.light is not None:
            brightness, contrast = (short_text(end) for end in self.around.light)
            where = (
                f"made of {self.name}{self._kept()} by brightness {brightness} and contrast "
                f"{contrast} at most"
            )
        goal = f"the class {self.label}"
        changes = f"changes {goal}" if self.target is None else f"makes {self.target} reach {goal}"
        if self.status is Status.UNSAT:
            return f"No {self.noun} {where} {changes}."
        if self.status is Status.SAT:
            return f"An {self.noun} {where} is classified {self.seen}, not {self.label}."
        return f"Whether an {self.noun} {where} {changes} is open."

    def _radius_sentence(self) -> str:
        parts = [f"{self.name}{self._kept()} keeps the class {self.label}"]
        none = "no radius was proved"
        parts.append(
            none if self.proved is None else f"within {self._radius(self.proved)}, which is proved"
        )
        parts.append(
            "no counterexample was found"
            if self.broken is None
            else f"an {self.noun} within {self._radius(self.broken)} is classified {self.seen}"
        )
        if self.proved is None:
            parts[:2] = [f"{self.name}{self._kept()}, class {self.label}: {none}"]
            return f"{'; '.join(parts)}."
        return f"{parts[0]} {parts[1]}; {parts[2]}."

    def _radius(self, eps: Fraction) -> str:
        norm = "" if self.around.norm == "Linf" else f" in {self.around.norm}"
        return radius_words(eps) + norm + (" times the map" if self.around.weights else "")

    @property
    def noun(self) -> str:
        return "image" if self.is_image else "input"

    def _kept(self) -> str:
        if self.limits is None:
            return " (any numbers)"
        low, high = (short_text(end) for end in self.limits)
        return f" ({'pixels' if self.is_image else 'values'} in [{low}, {high}])"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; see ``docs/json.md``."""
        return {
            "sentence": self.sentence(),
            "input": self.name,
            "eps": str(self.around.eps),
            "norm": self.around.norm,
            "brightness_contrast": self.around.light and [str(end) for end in self.around.light],
            "label": self.label,
            "target": self.target,
            "class_found": self.seen,
            "proved_eps": None if self.proved is None else str(self.proved),
            "broken_eps": None if self.broken is None else str(self.broken),
        }


class Asker:
    """Answers about one input of one network."""

    def __init__(
        self,
        network: FileClassifier | LevelClassifier,
        label: int | None,
        target: int | None,
        settings: Settings,
        report: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.network, self.target, self.settings, self.report = network, target, settings, report
        self.clean = network.judge(network.sample.values)
        self.label = self.clean.predicted if label is None else label
        for name, number in (("label", self.label), ("target", target)):
            if number is not None and not 0 <= number < network.classes:
                raise SettingsError(
                    f"the network has the classes 0 to {network.classes - 1}, so {name} cannot be "
                    f"{number}"
                )
        if target == self.label:
            raise SettingsError(f"the target {target} is the class of the input itself")
        self._classifier: GraphClassifier | None = None

    def property_text(self, around: Neighbourhood) -> str:
        """The question as VNN-LIB."""
        query = self.network.query(around, self.label, self.target)
        name = self.network.sample.name
        return vnnlib_text(query, f"{name}, eps {around.eps}, class {self.label}")

    def ask(self, around: Neighbourhood, budget: Budget) -> Robustness:
        """The answer for one radius. Raises ``SettingsError`` for a norm that cannot be asked."""
        if around.norm not in NORMS:
            raise SettingsError(f"norm {around.norm!r} is not known; use one of {', '.join(NORMS)}")
        if around.eps < 0:
            raise SettingsError(f"eps must not be negative, but is {around.eps}")
        itself = self.network.judge(self.network.sample.values, self.label)
        if not itself.is_right and self.target is None:
            values = self.network.sample.values
            witness = _witness(values, itself.logits)
            verdict = Verdict(Status.SAT, witness=witness, decided_by=BY_ITSELF)
            return self._answer(around, verdict, values)
        if around.light is not None and min(around.light) < 0:
            raise SettingsError("brightness and contrast must not be negative")
        if around.norm != "Linf" and around.light is None:
            return self._ask_ball(around, budget)
        return self._confirmed(around, *self._decide(around, budget))

    def _decide(self, around: Neighbourhood, budget: Budget) -> tuple[Verdict, np.ndarray | None]:
        return self.network.decide(
            around, self.label, self.target, self.settings, budget, self.report
        )

    def _confirmed(
        self, around: Neighbourhood, verdict: Verdict, values: np.ndarray | None
    ) -> Robustness:
        """The answer of a verdict on the box. Its counterexample counts if it holds in the set
        itself: the box is larger by rounding, and a ball smaller than its box."""
        if values is None:
            return self._answer(around, verdict, None)
        if self._is_lost(values) and self._is_inside(values, around):
            return self._answer(around, verdict, values)
        detail = (
            "the counterexample found lies outside the set by rounding"
            if around.norm == "Linf"
            else f"the box around this {around.norm} ball has counterexamples, none was found in "
            "the ball, and balls are proved through their box only; ask --norm Linf, or a smaller "
            "eps"
        )
        unknown = Verdict(
            Status.UNKNOWN,
            Reason.REPLAY if around.norm == "Linf" else Reason.INCOMPLETE,
            detail,
            phases=verdict.phases,
            counters=verdict.counters,
        )
        return self._answer(around, unknown, None)

    def _is_lost(self, values: np.ndarray) -> bool:
        judged = self.network.judge(values, self.label)
        if self.target is None:
            return not judged.is_right
        return not judged.logits[self.target] < judged.logits[self.label]

    def _is_inside(self, values: np.ndarray, around: Neighbourhood) -> bool:
        if around.norm == "Linf":
            return True  # ``values_of`` moves it there
        clean = torch.from_numpy(self.network.sample.values)
        return inside(self._ball(around), torch.from_numpy(values), clean)

    def _ball(self, around: Neighbourhood) -> Ball:
        values, limits = self.network.sample.values, self.network.sample.limits
        eps = float(around.eps)
        low, high = (
            (float(values.min()) - eps, float(values.max()) + eps)
            if limits is None
            else (float(limits[0]), float(limits[1]))
        )
        return Ball(around.norm, eps, low, high)

    def _ask_ball(self, around: Neighbourhood, budget: Budget) -> Robustness:
        """An attack in the ball; if it finds nothing, a proof for the box around it."""
        if around.weights is not None:
            raise SettingsError(
                f"maps and masks are for --norm Linf; leave them out, or {around.norm}"
            )
        if isinstance(self.network, FileClassifier) and self.network.has_gradients:
            found = self._attack(around)
            if found is not None:
                logits = self.network.judge(found).logits
                how = f"PGD in the {around.norm} ball"
                verdict = Verdict(Status.SAT, witness=_witness(found, logits), decided_by=how)
                return self._answer(around, verdict, found)
        return self._confirmed(around, *self._decide(replace(around, norm="Linf"), budget))

    def _attack(self, around: Neighbourhood) -> np.ndarray | None:
        assert isinstance(self.network, FileClassifier)
        if self._classifier is None:
            network = Network(
                read_graph(self.network.file), torch.float32, device_of(self.settings.device)
            )
            self._classifier = GraphClassifier(network, self.network.layout)
        attack = pgd_attack(
            self._classifier,
            self._ball(around),
            _STEPS,
            _RESTARTS,
            _RESTARTS,
            self._classifier.network.device,
        )
        clean = torch.from_numpy(self.network.sample.values[None])
        label, number = torch.tensor([self.label]), np.zeros(1, dtype=np.int64)
        found: np.ndarray = attack(clean, label, number, self.settings.seed)[0].numpy()
        if self._is_lost(found) and self._is_inside(found, around):
            return found
        return None

    def _answer(
        self, around: Neighbourhood, verdict: Verdict, adversarial: np.ndarray | None
    ) -> Robustness:
        sample = self.network.sample
        seen, holds = None, False
        if adversarial is not None:
            seen = self.network.judge(adversarial).predicted
            eight = unit_pixels(np.rint(np.clip(adversarial, 0, 1) * 255).astype(np.uint8))
            holds = self._is_lost(eight)
        return Robustness(
            verdict,
            sample.name,
            around,
            self.label,
            self.target,
            sample.limits,
            sample.is_image,
            sample.values,
            adversarial,
            seen,
            holds,
        )

    # -- the largest radius ------------------------------------------------------------------------

    def radius(self, around: Neighbourhood, budget: Budget) -> Robustness:
        """The largest proved and the smallest broken radius, from ``around.eps`` on, while
        ``budget`` lasts."""
        asked, spent = 1, dict[str, float]()
        proved: Fraction | None = None
        broken: Robustness | None = None
        least: Fraction | None = None
        opened: list[Fraction] = []
        last = self.ask(around, budget.capped(budget.remaining() / 4))
        top = None if self.network.sample.limits is None else _width(self.network.sample.limits)
        while True:
            eps = last.around.eps
            _add(spent, last.verdict.phases)
            if last.status is Status.UNSAT:
                proved = max(proved or eps, eps)
            elif last.status is Status.SAT:
                distance = self._distance(last)
                if least is None or distance < least:
                    broken, least = last, distance
            else:
                opened.append(eps)
            following = next_radius(proved, least, opened, top)
            if following is None or budget.remaining() <= 0 or last.verdict.decided_by == BY_ITSELF:
                break
            share = max(1.0, budget.remaining() / _SHARE)
            last = self.ask(replace(around, eps=following), budget.capped(share))
            asked += 1
        best = broken or last
        done = proved is not None and (least is not None or proved == top)
        verdict = replace(best.verdict, phases=spent)
        if broken is None:
            status = Status.UNSAT if done else Status.UNKNOWN
            verdict = replace(verdict, status=status)
            if status is Status.UNSAT:
                verdict = replace(verdict, reason=Reason.NONE, detail="")
        how = f"{asked} radii asked"
        return replace(
            best,
            verdict=replace(verdict, decided_by=how, counters={"radii": asked}),
            has_radius=True,
            proved=proved,
            broken=least,
        )

    def _distance(self, found: Robustness) -> Fraction:
        """A radius at which the counterexample lies in the set, not above the one it was found
        at."""
        if found.adversarial is None or found.around.norm != "Linf" or found.around.weights:
            return found.around.eps
        moves = np.abs(found.adversarial.astype(np.float64) - found.original.astype(np.float64))
        # (float64 holds differences of float32 of like size exactly; one step covers the others.)
        return min(found.around.eps, Fraction(float(np.nextafter(moves.max(), np.inf))))


def _width(limits: tuple[Fraction, Fraction]) -> Fraction:
    return limits[1] - limits[0]


def _add(total: dict[str, float], phases: Mapping[str, float]) -> None:
    for name, seconds in phases.items():
        total[name] = total.get(name, 0.0) + seconds


def _witness(values: np.ndarray, logits: np.ndarray) -> Witness:
    return Witness({"X": values.ravel()}, {"Y": logits})
