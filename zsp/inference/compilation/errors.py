"""Why a function cannot be compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CompileError", "KeptTensorError", "explained", "quiet"]


class CompileError(RuntimeError):
    """A function cannot be compiled here; the message says why."""


class KeptTensorError(RuntimeError):
    """A function kept a tensor of a trace, which has no value, so that it cannot just be run eagerly instead."""


@contextmanager
def explained() -> Iterator[None]:
    """Say in one line why something here failed."""
    try:
        yield
    except (CompileError, KeptTensorError):
        raise
    except Exception as error:
        if type(error).__name__ == "GuardOnDataDependentSymNode":
            raise CompileError(
                "the function branches on the value of a tensor: choose by torch.where instead"
            ) from error
        first = (str(error).strip() or "no message").splitlines()[0]
        raise CompileError(f"{type(error).__name__}: {first}") from error


class quiet:
    """Nothing but errors from a library's logger; nothing at all from one that reports exceptions that are raised."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
