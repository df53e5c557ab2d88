"""Compilers of devices that are not here: without one a test skips, or fails if COMPILERS=required."""

import functools
import os
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import pytest

from bench import compiled

P = ParamSpec("P")
T = TypeVar("T")


def refuse(reason: str) -> NoReturn:
    """Skips the test; fails it where CI wants the compilers."""
    (pytest.fail if os.environ.get("COMPILERS") == "required" else pytest.skip)(reason)


def available(compile: Callable[P, T]) -> Callable[P, T]:
    """A function that compiles, or refuses where the compiler is missing or does not fit this JAX."""

    @functools.wraps(compile)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return compile(*args, **kwargs)
        except compiled.Unavailable as error:
            refuse(str(error))

    return call


@functools.cache
def _unavailable(target: str) -> str | None:
    try:
        compiled.place(target)
    except compiled.Unavailable as error:
        return str(error)
    return None


def require(target: str) -> None:
    """Refuses unless the compiler of `target` is here."""
    if reason := _unavailable(target):
        refuse(reason)
