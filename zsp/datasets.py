"""Data sets for examples and tests: one bundled with the package, the larger ones from a folder or the cache.

Nothing here downloads by itself; :func:`download` does, when it is called.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Images", "binarize", "cache_folder", "data_folder", "digits", "download", "mnist"]

MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
#: array in mnist.npz -> (file on the mirror, its MD5)
MNIST_FILES = {
    "train_images": ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train_labels": ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    "test_images": ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    "test_labels": ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
}


@dataclass(frozen=True, eq=False)
class Images:
    """Grey images with class labels, in a training and a test part.

    Attributes:
        train_images: [n, height * width], float32 in [0, 1], 1 is ink; rows of pixels one after the other.
        train_labels: [n], int64, classes from 0.
        test_images: [n_test, height * width], float32 in [0, 1].
        test_labels: [n_test], int64.
        shape: (height, width): ``train_images.unflatten(-1, shape)`` gives the pictures.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    shape: tuple[int, int]


def digits() -> Images:
    """Handwritten digits of 8 x 8 pixels in 10 classes, bundled: 1,437 to train on and 360 to test.

    The rows keep scikit-learn's order; the first 1,437 are the training part and the last 360 the test part, with 33
    to 37 test images a class. A pixel counts ink in a block of 4 x 4, so it has 17 levels: k / 16.

    Reference: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (doi:10.24432/C50P49, CC BY 4.0); its test set, as in ``sklearn.datasets.load_digits``.
    """
    arrays = _load(Path(__file__).parent / "data" / "digits.npz", ("images", "labels"))
    images, labels, n_train = arrays["images"], arrays["labels"], 1437
    return _images(images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], maximum=16)


def mnist() -> Images:
    """MNIST: handwritten digits of 28 x 28 pixels in 10 classes, the official 60,000 to train on and 10,000 to test.

    ``mnist.npz`` is looked for in :func:`data_folder`, then in :func:`cache_folder`.

    Raises:
        FileNotFoundError: if it is in neither. Nothing is downloaded; ``zsp.datasets.download("mnist")`` does that.
        ValueError: if the file lacks an array.

    Reference: LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition.
    """
    folders = [folder for folder in (data_folder(), cache_folder()) if folder is not None]
    for folder in folders:
        path = folder / "mnist.npz"
        if path.is_file():
            arrays = _load(path, tuple(MNIST_FILES))
            return _images(**arrays, maximum=255)
    looked = " and ".join(str(folder / "mnist.npz") for folder in folders)
    raise FileNotFoundError(
        f"MNIST is not on this machine: there is no {looked}. Get it once with `python -m zsp download mnist` "
        f"(11 MB, into the cache), or set ZSP_DATA to a folder that holds mnist.npz."
    )


def binarize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Binary images drawn from grey ones: each pixel is 1 with the probability that is its grey value.

    Drawn anew for each mini-batch this is "dynamic binarisation"; drawn once, with a seed, it gives a fixed set.

    Args:
        images: any shape, floating point, in [0, 1].
        generator: where the random numbers come from; torch's default generator if None.

    Returns:
        Zeros and ones in the shape, dtype and device of ``images``.

    Raises:
        TypeError: if the images are not floating point.
        ValueError: if a value is outside [0, 1] (on the CPU; on another device torch reports it, without the value).

    Reference: Salakhutdinov and Murray 2008, On the quantitative analysis of deep belief networks.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"binarize needs floating-point images in [0, 1], but got {images.dtype}. Divide by the largest value: "
            f"images / 255 for bytes."
        )
    if images.device.type == "cpu" and images.numel():  # elsewhere, reading the values would wait for the device
        low, high = (limit.item() for limit in images.aminmax())
        if not (low >= 0 and high <= 1):  # so that NaN is refused too
            raise ValueError(
                f"binarize needs images in [0, 1], but the values go from {low:.4g} to {high:.4g}. Divide by the "
                f"largest value: images / 255 for bytes."
            )
    return torch.bernoulli(images, generator=generator)


def data_folder() -> Path | None:
    """The folder of data sets that the user keeps, or None.

    It is ``$ZSP_DATA``; where that is not set, ``../shared/data`` seen from a checkout of zsp, if it exists.
    """
    if chosen := os.environ.get("ZSP_DATA"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    beside = checkout.parent / "shared" / "data"
    return beside if (checkout / "pyproject.toml").is_file() and beside.is_dir() else None


def cache_folder() -> Path:
    """The folder of downloaded sets: ``$ZSP_CACHE``, else ``zsp`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("ZSP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zsp"


def download(
    name: str, *, mirror: str = MNIST_MIRROR, files: Mapping[str, tuple[str, str]] = MNIST_FILES, timeout: float = 60.0
) -> Path:
    """Fetch a data set into :func:`cache_folder`, once: a set that is there already is left as it is.

    Every file is checked before anything is made of it, and the set appears in the cache complete or not at all.

    Args:
        name: the data set: "mnist".
        mirror: the address of the folder that holds the files.
        files: for each array of the set its file on the mirror (idx, gzipped) and the file's MD5.
        timeout: seconds without an answer after which to give up.

    Returns:
        The path of the set in the cache.

    Raises:
        ValueError: if there is no set of this name.
        OSError: if a file cannot be fetched, or is not the one expected.
    """
    if name != "mnist":
        raise ValueError(f"there is no data set {name!r} to download; there is 'mnist'.")
    path = cache_folder() / f"{name}.npz"
    if not path.is_file():
        base = mirror.rstrip("/") + "/"
        arrays = {array: _idx_array(_fetch(base + file, md5, timeout)) for array, (file, md5) in files.items()}
        _save(path, arrays)
    return path


def _fetch(url: str, md5: str, timeout: float) -> bytes:
    """The content of a file whose checksum is known. It stays in memory, so what is wrong is never on disk."""
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=timeout) as response:
            content: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise OSError(
            f"cannot download {url}: {error}. Check the network (and its proxy), or give the address of another "
            f"mirror: zsp.datasets.download(..., mirror=...)."
        ) from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise OSError(
            f"{url} should have MD5 {md5}, but its {len(content)} bytes have {found}: the download was damaged or the "
            f"file is another one. Nothing was kept. Try again, or give another mirror: "
            f"zsp.datasets.download(..., mirror=...)."
        )
    return content


def _idx_array(content: bytes) -> np.ndarray:
    """The array of bytes in a gzipped idx file: magic 0, 0, 8, n_dims; the sizes, big-endian; the data."""
    import numpy as np

    raw = gzip.decompress(content)
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"an idx file of bytes starts with 00 00 08, but this one with {raw[:3].hex(' ')}.")
    n_dims = raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", n_dims, offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * n_dims)
    return data.reshape(shape)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file that other processes see whole or not at all."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        np.savez_compressed(part, **arrays)
        os.replace(part, path)


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in names if name not in file.files]:
            raise ValueError(
                f"{path} should hold the arrays {', '.join(names)}, but lacks {', '.join(missing)} (it has "
                f"{', '.join(file.files)}). Move it away and get the set with `python -m zsp download {path.stem}`."
            )
        return {name: file[name] for name in names}


def _images(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    maximum: int,
) -> Images:
    """From bytes [n, height, width], where ``maximum`` stands for 1, to what the user sees."""

    def pixels(images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).flatten(1).to(torch.float32) / maximum

    def classes(labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels).to(torch.int64)

    shape: Any = train_images.shape[1:]
    return Images(pixels(train_images), classes(train_labels), pixels(test_images), classes(test_labels), shape)
