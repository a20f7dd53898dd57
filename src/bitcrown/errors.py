"""Every error bitcrown raises on purpose has one root, so that callers catch one class.

A message says what is wrong, where (file, line, node) and what to do next, in one sentence.
"""

from __future__ import annotations


class BitcrownError(Exception):
    """Root of all errors that bitcrown raises on purpose."""

    def __str__(self) -> str:
        """One line, even where the words of a library or a name in a damaged file bring line ends
        along."""
        return " ".join(part.strip() for part in super().__str__().splitlines() if part.strip())


class ModelError(BitcrownError):
    """The network file cannot be read, or is not what it claims to be."""


class UnsupportedError(ModelError):
    """The network or property is well formed but uses something bitcrown has no rule for."""


class PropertyError(BitcrownError):
    """The property file cannot be read, contradicts itself or does not fit the network."""


class DataError(BitcrownError):
    """The labelled images cannot be read, or do not fit the network."""


class SettingsError(BitcrownError):
    """An option has a value outside its range, or two options exclude each other."""


class ResourceError(BitcrownError):
    """A file cannot be written, memory is short, or an optional part is not installed."""


class RecordError(BitcrownError):
    """A record of an evaluation lacks something, or its numbers contradict each other."""


class BudgetExpired(BitcrownError):
    """The deadline has passed; raised by ``Budget.check`` and turned into ``timeout`` by the
    strategy."""


def said_by(error: Exception) -> str:
    """What an exception says, without the number and the path that the system puts around it."""
    return getattr(error, "strerror", None) or str(error)
