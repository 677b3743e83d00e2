"""Runs a function of this package in a process of its own. It can be stopped alone, and gives all its memory back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])


def run(
    function: Callable[[], None], given: bytes, *arguments: str, seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Call a function of a module, with what is given on its standard input and with arguments in ``sys.argv``.

    ``subprocess.TimeoutExpired`` if it takes longer than so many seconds.
    """
    name = function.__name__
    paths = [_ROOT, os.environ.get("PYTHONPATH")]
    return subprocess.run(  # noqa: S603 - our own arguments, no shell
        # No module of the working directory.
        [sys.executable, "-P", "-c", f"from {function.__module__} import {name}; {name}()", *arguments],
        input=given,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True,
        timeout=seconds,
        check=False,
    )
