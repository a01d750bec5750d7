"""Packages of this Python: their versions, and what is said of one that is missing. DO, only looking; nothing is imported."""

from __future__ import annotations

import importlib.metadata
import sys

from launcher.errors import Problem


def version(package: str) -> str | None:
    """None where it is not installed for this Python."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_package(package: str) -> Problem:
    """E407 with the command that installs it."""
    extra = ", needed for model.quantize" if package == "bitsandbytes" else ""
    what = f"{package} is not installed for {sys.executable}{extra}"
    return Problem(code="E407", where=package, what=what, hint=f"{sys.executable} -m pip install {package}")
