"""Make zsp/data/digits.npz from scikit-learn's copy of the 8 x 8 digits: python tools/bundle_digits.py [path]."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def bundle(path: Path) -> None:
    """Write ``images`` [1797, 8, 8] (ink, 0 to 16) and ``labels`` [1797] as bytes, in scikit-learn's order."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if not (np.array_equal(images, digits.images) and np.array_equal(labels, digits.target)):
        raise ValueError("scikit-learn's digits should be whole numbers from 0 to 255, but are not.")
    np.savez_compressed(path, images=images, labels=labels)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "zsp" / "data" / "digits.npz"
    bundle(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
