"""The outer form of a certificate and of a property: every list is a list, every field has its
place and its type.

A string can stand for a list in Python as long as nobody asks, an empty one even for "no steps". So
the whole tree is held to this grammar before any of it means something (``docs/certificates.md``
says what it means):

    part   = [step, ...]
    step   = ["propagate"] | ["empty"] | ["enumerate"] | ["prove", tau, slopes]
           | ["split", n, e, k, part, part]
           | ["tighten", tau, slopes, [[n, e, low, high], ...]]
           | ["clip", tau, slopes, [[n, e, sign, q, t], ...]]
           | ["bound", [[n, e, sign, q, tau, slopes], ...]]
    tau    = [integer, ...]
    slopes = [[n, [[e, integer] | [e, place, integer], ...]], ...]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitcrown.check.certificates.documents import Reject

_CERTIFICATE_KEYS = {"format", "network", "property", "trunk", "roots", "parts", "digest"}
_Form = Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _list_of(form: _Form) -> _Form:
    return lambda value: type(value) is list and all(map(form, value))


def _row_of(*forms: _Form) -> _Form:
    return lambda value: (
        type(value) is list
        and len(value) == len(forms)
        and all(f(v) for f, v in zip(forms, value, strict=True))
    )


def _numbers(count: int) -> _Form:
    return _row_of(*[_is_integer] * count)


_tau = _list_of(_is_integer)
_slope = _list_of(
    lambda value: type(value) is list and len(value) in (2, 3) and all(map(_is_integer, value))
)
_slopes = _list_of(_row_of(_is_integer, _slope))
_STEPS: dict[str, _Form] = {
    "propagate": _row_of(),
    "empty": _row_of(),
    "enumerate": _row_of(),
    "prove": _row_of(_tau, _slopes),
    "split": _numbers(5),
    "tighten": _row_of(_tau, _slopes, _list_of(_numbers(4))),
    "clip": _row_of(_tau, _slopes, _list_of(_numbers(5))),
    "bound": _row_of(_list_of(_row_of(*[_is_integer] * 4, _tau, _slopes))),
}


def require_certificate(content: Any) -> None:
    """Raises ``Reject`` for what is no certificate by its form alone."""
    if type(content) is not dict or _CERTIFICATE_KEYS - content.keys():
        raise Reject("it is no certificate")
    if unknown := content.keys() - _CERTIFICATE_KEYS - {"forms"}:
        raise Reject(f"the certificate has the unknown entry {min(unknown)[:40]!r}")
    if not _list_of(_is_integer)(content["roots"]):
        raise Reject("the roots are not a list of integers")
    if type(content["parts"]) is not list:
        raise Reject("the parts are not a list")
    for name, part in (
        ("the trunk", content["trunk"]),
        *((f"part {n}", p) for n, p in enumerate(content["parts"])),
    ):
        if type(part) is not list:
            raise Reject(f"{name} is not a list of steps")
        for place, step in enumerate(part):
            if (
                type(step) is not list
                or not step
                or type(step[0]) is not str
                or step[0] not in _STEPS
            ):
                raise Reject(f"{name} step {place}: unknown step")
            if not _STEPS[step[0]](step[1:]):
                raise Reject(
                    f"{name} step {place}: a field of {step[0]} is missing, or is not an integer "
                    "or a list"
                )


def require_property(content: Any) -> None:
    """Raises ``Reject`` for what is no property by its form alone."""
    if type(content) is not dict or not {"low", "high", "cases"} <= content.keys() <= {
        "low",
        "high",
        "cases",
        "real",
    }:
        raise Reject("it is no property with low, high and cases")
    cases = _list_of(_list_of(_is_constraint))
    if not cases(content["cases"]):
        raise Reject("the cases of the property do not have their form")


def _is_constraint(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == {"terms", "bound"}
        and _list_of(_numbers(2))(value["terms"])
        and _is_integer(value["bound"])
    )
