"""The few options of bitcrown: one row of ``OPTIONS`` each, from which the command line and its
help are made.

Nothing here depends on a benchmark or a file name. ``memory_gib = 0`` and ``threads = 0`` mean
"measured": the machine memory (or the smaller control-group limit) less a reserve, and the cores
this process may use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bitcrown.errors import SettingsError

ENVIRONMENT_PREFIX = "BITCROWN_"
GIB = 1 << 30
_SEARCH_SHARE = 0.7
"""Share of the process's memory limit that tensors of the search may use; the rest is interpreter
and libraries."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``low``/``high`` bound numbers, ``choices`` lists words; ``sentence`` is its help
    text."""

    name: str
    default: str | int | float
    sentence: str
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def parse(self, value: Any) -> str | int | float:
        """``value`` as this option's type. Raises ``SettingsError`` for a wrong type or one outside
        the range."""
        kind = type(self.default)
        refusal = SettingsError(f"option {self.name} needs {self.range_text()}, but got {value!r}")
        try:
            parsed = value if type(value) is kind else kind(str(value))
        except ValueError as error:
            raise refusal from error
        # Written so that a NaN is refused: it is not within any bounds.
        is_within = isinstance(parsed, str) or self.low <= parsed <= self.high
        if not is_within or (self.choices and parsed not in self.choices):
            raise refusal
        return parsed

    def range_text(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        word = "a whole number" if isinstance(self.default, int) else "a number"
        low, high = (
            f"{int(end)}" if float(end).is_integer() and abs(end) < 1e15 else f"{end:g}"
            for end in (self.low, self.high)
        )
        return f"{word} from {low} to {high}{' ' + self.unit if self.unit else ''}"


OPTIONS = (
    Option(
        "device",
        "auto",
        "where tensors live; auto takes CUDA if there is one",
        choices=("auto", "cpu", "cuda"),
    ),
    Option("seed", 0, "seed of every random choice", low=0, high=2**32 - 1),
    Option("threads", 0, "CPU threads; 0 means all that this process may use", low=0, high=4096),
    Option(
        "semantics",
        "real",
        "what unsat is about: the real function, or what onnxruntime rounds (always the latter in "
        "sixteen-bit types)",
        choices=("real", "runtime"),
    ),
    Option(
        "memory_gib",
        0.0,
        "memory limit; 0 means what the machine has less a reserve",
        unit="GiB",
        high=1 << 20,
    ),
)


@dataclass(frozen=True)
class Settings:
    """Options of one decision; see ``OPTIONS`` for ranges. Raises ``SettingsError`` for a value
    outside its range.

    ``without`` is no option of the command line: names of competing rules of the search that take
    no part, by which it is measured what hangs on one of them (docs/search.md).
    """

    device: str = "auto"
    seed: int = 0
    threads: int = 0
    semantics: str = "real"
    memory_gib: float = 0.0
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "without", tuple(self.without))
        for option in OPTIONS:
            object.__setattr__(self, option.name, option.parse(getattr(self, option.name)))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from words or numbers by name. Raises ``SettingsError`` for a name that is no
        option."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise SettingsError(
                    f"there is no option {name!r}; the options are {', '.join(sorted(known))}"
                )
        return cls(**values)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from variables such as ``BITCROWN_SEED``; the competition's scripts have no
        other way in."""
        found = os.environ if environment is None else environment
        texts = {row.name: found.get(ENVIRONMENT_PREFIX + row.name.upper()) for row in OPTIONS}
        return cls.from_mapping({name: text for name, text in texts.items() if text})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def thread_count(self) -> int:
        """Threads to use: the option, or the cores this process may run on."""
        return self.threads or usable_cores()

    def process_bytes(self) -> int:
        """Resident memory that all processes of one decision may have together, in bytes."""
        return int(self.memory_gib * GIB) or measured_limit()

    def memory_bytes(self) -> int:
        """Bytes for tensors of the search: a share of ``process_bytes``."""
        return int(_SEARCH_SHARE * self.process_bytes())


def usable_cores() -> int:
    """Cores in this process's affinity mask, or fewer where a control group grants less processor
    time."""
    cores = len(os.sched_getaffinity(0))
    for folder in _control_groups():
        # Microseconds of processor time granted in each period, and the length of the period.
        words = _first_line(f"{folder}/cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and int(words[1]):
            cores = min(cores, max(1, -(-int(words[0]) // int(words[1]))))
    return cores


def measured_limit() -> int:
    """Memory this process may use (bytes): what is free now, at most the control group's limit,
    less a reserve.

        limit - min(limit / 4, max(1 GiB, total / 25)),   limit = min(total, available)
    """
    available = total = 1 << 62
    for line in _lines("/proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            total = int(rest.split()[0]) << 10
        elif name == "MemAvailable":
            available = int(rest.split()[0]) << 10
    for folder in _control_groups():
        # Version 2 and version 1; the word "max", or a number beyond any memory, is no limit.
        for name in ("memory.max", "memory.limit_in_bytes"):
            word = _first_line(f"{folder}/{name}")
            if word.isdigit():
                total = min(total, int(word))
    total = total if total < 1 << 62 else 4 * GIB
    limit = min(total, available)
    reserve = min(limit // 4, max(GIB, total // 25))
    return limit - reserve


def _control_groups() -> list[str]:
    """Folders of the control groups this process is in, and of their parents: version 2 and version
    1's memory."""
    folders = []
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers in ("", "memory"):
            root = "/sys/fs/cgroup" + (f"/{controllers}" if controllers else "")
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += ["/".join([root, *parts[:depth]]) for depth in range(len(parts) + 1)]
    return folders


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _first_line(path: str) -> str:
    return next(iter(_lines(path)), "").strip()
