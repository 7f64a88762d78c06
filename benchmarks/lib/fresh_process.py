"""Calls in processes of their own, so that the peak memory of each is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a process that did nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)
