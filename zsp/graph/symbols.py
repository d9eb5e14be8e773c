"""Names of nodes as mathematical symbols: ``theta_tilde`` is a theta with a tilde, ``z1`` is z with subscript 1."""

from __future__ import annotations

import re

__all__ = ["ACCENTS", "FONT", "GREEK", "latex_symbol", "symbol", "text_width"]

FONT = 17.0
"""The size of a node's name in a drawing."""

_LETTERS = (
    "alpha α beta β gamma γ delta δ epsilon ε zeta ζ eta η theta θ iota ι kappa κ lambda λ mu μ nu ν xi ξ pi π rho ρ "
    "sigma σ tau τ upsilon υ phi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Phi Φ Psi Ψ "
    "Omega Ω"
).split()
GREEK = dict(zip(_LETTERS[::2], _LETTERS[1::2], strict=True))
ACCENTS = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304"}


def symbol(name: str) -> tuple[str, str, str] | None:
    """Letter, accent and subscript that a name spells: ``theta_tilde_1`` is (theta, tilde, 1). None for a word."""
    head, *parts = name.split("_")
    match = re.fullmatch(r"([A-Za-z]+?)(\d*)", head)
    if match is None or not all(re.fullmatch(r"[A-Za-z0-9]+", part) for part in parts):
        return None
    letter, digits = match.groups()
    if len(letter) > 1 and letter not in GREEK:
        return None
    accent = next((part for part in parts if part in ACCENTS), "")
    subscripts = [digits, *(part for part in parts if part != accent)]
    return letter, accent, ",".join(part for part in subscripts if part)


def latex_symbol(name: str) -> str:
    r"""A name in LaTeX's mathematics: ``theta_tilde`` is ``\tilde{\theta}``, a word stands upright."""
    found = symbol(name)
    if found is None:
        special = {"\\": r"\backslash ", "^": r"\hat{}", "~": r"\tilde{}"}
        return r"\mathrm{" + "".join(special.get(c, f"\\{c}" if c in "_#$%&{}" else c) for c in name) + "}"
    letter, accent, subscript = found
    text = f"\\{letter}" if letter in GREEK else letter
    if accent:
        text = f"\\{accent}{{{text}}}"
    if subscript:
        text += f"_{{{subscript}}}" if len(subscript) == 1 or subscript.isdigit() else f"_{{\\mathrm{{{subscript}}}}}"
    return text


def text_width(name: str) -> float:
    """About how wide a node's name is in the drawing, rather too wide than too narrow."""
    found = symbol(name)
    if found is None:
        return 0.58 * FONT * len(name)
    return 0.62 * FONT + 0.42 * FONT * len(found[2])
