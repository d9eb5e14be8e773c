"""Optional dependencies: imported on demand, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an optional dependency.

    ::

        figure = require("matplotlib.figure", extra="plot", purpose="drawing pictures")

    Args:
        module: the module's full name.
        extra: the extra of zsp that installs it.
        purpose: what needs it, as the subject of a sentence.

    Returns:
        The module.

    Raises:
        ImportError: if its package is not installed. An error inside an installed package is raised as it is.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f'{purpose} needs {package}, which is not installed: pip install "zsp[{extra}]"', name=package
        ) from error
    return importlib.import_module(module)
