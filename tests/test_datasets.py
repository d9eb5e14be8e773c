import functools
import gzip
import hashlib
import http.server
import runpy
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from zsp import datasets
from zsp.datasets import binarize, digits, download, mnist


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders of data and of the cache, which ZSP_DATA and ZSP_CACHE name."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    monkeypatch.setenv("ZSP_DATA", str(data))
    monkeypatch.setenv("ZSP_CACHE", str(cache))
    return data, cache


def small_mnist(n=5, n_test=3):
    rng = np.random.default_rng(0)

    def images(n):
        return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)

    def labels(n):
        return rng.integers(0, 10, n, dtype=np.uint8)

    return {
        "train_images": images(n),
        "train_labels": labels(n),
        "test_images": images(n_test),
        "test_labels": labels(n_test),
    }


# digits


def test_digits_are_those_of_scikit_learn():
    expected = load_digits()
    data = digits()
    assert len(data.train_images) == len(data.train_labels) == 1437
    assert len(data.test_images) == len(data.test_labels) == 360
    images = torch.cat([data.train_images, data.test_images])
    np.testing.assert_array_equal(16 * images.numpy(), expected.data)
    np.testing.assert_array_equal(images.unflatten(-1, data.shape).numpy() * 16, expected.images)
    np.testing.assert_array_equal(torch.cat([data.train_labels, data.test_labels]).numpy(), expected.target)
    assert images.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    counts = data.test_labels.bincount()
    assert len(counts) == 10 and (counts.min(), counts.max()) == (33, 37)


def test_the_bundle_is_what_its_script_makes(tmp_path):
    root = Path(__file__).parents[1]
    script = runpy.run_path(str(root / "tools" / "bundle_digits.py"))
    script["bundle"](tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as made, np.load(root / "zsp" / "data" / "digits.npz") as bundled:
        assert set(made) == set(bundled) == {"images", "labels"}
        for name in made:
            assert made[name].dtype == bundled[name].dtype == np.uint8
            np.testing.assert_array_equal(made[name], bundled[name])
    assert (root / "zsp" / "data" / "digits.npz").stat().st_size < 60_000


# mnist


def test_mnist_has_the_official_split(data_dir):
    data = mnist()
    assert data.train_images.shape == (60000, 784) and data.test_images.shape == (10000, 784)
    assert data.shape == (28, 28) and data.train_images.dtype == torch.float32
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # the well-known mean and standard deviation of the training pixels
    assert data.train_images.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train_images.std().item() == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.parametrize("place", [0, 1], ids=["data", "cache"])
def test_mnist_is_read_from_the_data_folder_and_the_cache(folders, place):
    arrays = small_mnist()
    folders[place].mkdir(exist_ok=True)
    np.savez(folders[place] / "mnist.npz", **arrays)
    data = mnist()
    np.testing.assert_array_equal(
        data.train_images.numpy(), arrays["train_images"].reshape(5, 784).astype(np.float32) / 255
    )
    np.testing.assert_array_equal(
        data.test_images.unflatten(-1, (28, 28)).numpy(), arrays["test_images"].astype(np.float32) / 255
    )
    assert data.train_labels.tolist() == arrays["train_labels"].tolist()
    assert data.test_labels.tolist() == arrays["test_labels"].tolist()


def test_the_data_folder_comes_before_the_cache(folders):
    for folder, n in zip(folders, (2, 4), strict=True):
        folder.mkdir(exist_ok=True)
        np.savez(folder / "mnist.npz", **small_mnist(n))
    assert len(mnist().train_images) == 2


def test_missing_mnist_says_where_it_looked_and_what_to_do(folders):
    with pytest.raises(FileNotFoundError) as error:
        mnist()
    text = str(error.value)
    assert all(str(folder / "mnist.npz") in text for folder in folders)
    assert "python -m zsp download mnist" in text and "ZSP_DATA" in text
    assert not folders[1].exists(), "looking is not downloading"


def test_another_file_of_that_name_is_refused(folders):
    np.savez(folders[0] / "mnist.npz", x_train=np.zeros(3), test_labels=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"lacks train_images, train_labels, test_images \(it has x_train, test_labels"
    ):
        mnist()


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    for name in ("ZSP_DATA", "ZSP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    assert datasets.data_folder() == (beside if beside.is_dir() else None)
    assert datasets.cache_folder() == tmp_path / ".cache" / "zsp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert datasets.cache_folder() == tmp_path / "xdg" / "zsp"
    monkeypatch.setenv("ZSP_CACHE", "~/mine")
    monkeypatch.setenv("ZSP_DATA", "~/sets")
    assert datasets.cache_folder() == tmp_path / "mine"
    assert datasets.data_folder() == tmp_path / "sets"


# download, from a server on this machine


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A loopback mirror of a small MNIST: its folder, address, files with checksums, arrays and the requests so far."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "mirror"
    folder.mkdir()
    arrays, files = small_mnist(), {}
    for name, array in arrays.items():
        content = idx(array)
        (folder / f"{name}.gz").write_bytes(content)
        files[name] = (f"{name}.gz", hashlib.md5(content).hexdigest())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.requested = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield folder, address, files, arrays, server.requested
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("slash", ["", "/"])
def test_download_fills_the_cache_once(folders, mirror, slash):
    _, address, files, arrays, requested = mirror
    path = download("mnist", mirror=address + slash, files=files)
    assert path == folders[1] / "mnist.npz" and [p.name for p in path.parent.iterdir()] == ["mnist.npz"]
    with np.load(path) as saved:
        assert set(saved) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(saved[name], array)
    assert mnist().train_labels.tolist() == arrays["train_labels"].tolist()
    assert requested == [f"/{file}" for file, _ in files.values()]
    assert download("mnist", mirror=address, files=files) == path
    assert len(requested) == 4, "a second call takes what is there"


def nothing_in(folder):
    return not folder.exists() or not any(folder.iterdir())


def test_a_damaged_file_is_refused_and_nothing_kept(folders, mirror):
    folder, address, files, *_ = mirror
    content = bytearray((folder / "test_labels.gz").read_bytes())
    content[-1] ^= 1
    (folder / "test_labels.gz").write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    with pytest.raises(OSError, match=f"test_labels.gz should have MD5 {files['test_labels'][1]}.* have {found}"):
        download("mnist", mirror=address, files=files)
    assert nothing_in(folders[1])


def test_a_file_that_the_mirror_lacks(folders, mirror):
    folder, address, files, *_ = mirror
    (folder / "test_images.gz").unlink()
    with pytest.raises(OSError, match=rf"cannot download {address}/test_images.gz: .*404.*mirror=\.\.\."):
        download("mnist", mirror=address, files=files)
    assert nothing_in(folders[1])


def test_a_mirror_that_does_not_answer(folders, mirror):
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot download {address}/train_images.gz: .*refused"):
            download("mnist", mirror=address, files=mirror[2])
    assert nothing_in(folders[1])


def test_a_write_that_fails_leaves_nothing(folders, mirror, monkeypatch):
    _, address, files, *_ = mirror

    def savez(path, **arrays):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", savez)
    with pytest.raises(OSError, match="no space left"):
        download("mnist", mirror=address, files=files)
    assert nothing_in(folders[1])


def test_a_file_of_another_kind_is_refused(folders, mirror):
    folder, address, files, *_ = mirror
    content = gzip.compress(b"<html>not found</html>")
    (folder / "train_labels.gz").write_bytes(content)
    files["train_labels"] = ("train_labels.gz", hashlib.md5(content).hexdigest())
    with pytest.raises(ValueError, match="starts with 00 00 08, but this one with 3c 68 74"):
        download("mnist", mirror=address, files=files)
    assert nothing_in(folders[1])


def test_an_unknown_set(folders):
    with pytest.raises(ValueError, match="no data set 'cifar' to download; there is 'mnist'"):
        download("cifar")


# binarize


def test_binarize_draws_bernoulli_pixels():
    grey = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float32)
    draws = binarize(grey.expand(40_000, 4), torch.Generator().manual_seed(1))
    assert draws.dtype == torch.float32 and set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws[:, 0] == 0).all() and (draws[:, 3] == 1).all()
    # six standard errors of a mean of 40,000 Bernoulli draws
    for column, p in ((1, 0.25), (2, 0.9)):
        assert abs(draws[:, column].double().mean().item() - p) < 6 * (p * (1 - p) / 40_000) ** 0.5


def test_binarize_follows_the_generator():
    images = torch.full((50,), 0.5)
    first, again = (binarize(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, binarize(images, torch.Generator().manual_seed(4)))
    torch.manual_seed(3)
    assert torch.equal(first, binarize(images)), "without a generator it is torch's default one"


def test_binarize_refuses_bytes_and_values_outside():
    with pytest.raises(TypeError, match="floating-point images .* got torch.uint8.*images / 255"):
        binarize(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the values go from 0 to 255. Divide by the largest value"):
        binarize(torch.tensor([0.0, 255.0]))
    with pytest.raises(ValueError, match="the values go from -0.5 to 1"):
        binarize(torch.tensor([-0.5, 1.0]))
    with pytest.raises(ValueError, match="go from nan to nan"):
        binarize(torch.tensor([float("nan"), 1.0]))
    assert binarize(torch.zeros(0, 3)).shape == (0, 3)
