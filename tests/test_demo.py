"""The demo and the command line."""

from __future__ import annotations

import builtins
import re
import sys

import pytest
import torch

from zsp import datasets, demo
from zsp.__main__ import main

PICTURES = {"samples.png", "reconstructions.png", "latent_space.png", "loss.png", "model.png"}
NUMBER = r"(-?\d+\.\d+) nats \(Monte Carlo s\.e\. (\d+\.\d+)\)"


def small_mnist() -> datasets.Images:
    images, labels = torch.rand(200, 784, dtype=torch.float32), torch.arange(200) % 10
    return datasets.Images(images[:150], labels[:150], images[150:], labels[150:], (28, 28))


def test_command_line(tmp_path, capsys):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    folder = tmp_path / "deep" / "folder"
    assert main(["demo", "--epochs", "2", "--output", str(folder), "--no-progress"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (elbo, elbo_error), (log_likelihood, error) = (tuple(map(float, m)) for m in re.findall(NUMBER, captured.out))
    assert -60 < elbo < log_likelihood < -10
    assert 0 < elbo_error < 0.2
    assert 0 < error < 0.2
    assert str(folder) in captured.out
    assert {path.name for path in folder.iterdir()} == PICTURES
    for path in folder.iterdir():
        pixels = matplotlib_image.imread(path)
        assert min(pixels.shape[:2]) > 100
        assert pixels[..., :3].std() > 0.05, f"{path.name} is blank"


def test_same_seed_same_result(tmp_path, capsys):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    results = [
        demo.run(epochs=1, output=tmp_path, seed=seed, progress=False, n_importance=20) for seed in (3, 3, 4)
    ]
    assert results[0].elbo == results[1].elbo
    assert results[0].log_likelihood == results[1].log_likelihood
    assert results[0].history["loss"] == results[1].history["loss"]
    assert results[0].elbo != results[2].elbo
    first, second, _ = capsys.readouterr().out.split("Variational autoencoder")[1:]
    numbers = [re.findall(NUMBER, text) for text in (first, second)]
    assert numbers[0] == numbers[1]
    # the caller's settings are as they were
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_training_improves_the_bound(tmp_path):
    result = demo.run(epochs=40, output=tmp_path, progress=False, n_importance=200)
    test_elbo = result.history["test elbo"]
    assert len(test_elbo) == 40
    # images of independent pixels, the plateau of the first epochs, have about -25 nats
    independent = independent_pixels_log_likelihood()
    assert result.elbo.value > independent + 3
    assert result.elbo.value > test_elbo[0] + 3
    assert result.elbo.value < result.log_likelihood.value
    assert result.ess.shape == (360,)
    assert (result.ess >= 1 - 1e-6).all()


def independent_pixels_log_likelihood() -> float:
    images = datasets.digits()
    x_train, x_test = (images.train_images >= 0.5).double(), (images.test_images >= 0.5).double()
    p = (x_train.sum(0) + 0.5) / (len(x_train) + 1)
    return (x_test * p.log() + (1 - x_test) * (1 - p).log()).sum(-1).mean().item()


def test_mnist_is_binarised_anew_in_every_step(tmp_path, monkeypatch):
    settings = demo.SETTINGS["mnist"]
    small = demo.Settings(small_mnist, settings.is_dynamic, 4, 16, 1, 50, 50, 10, 1, "no time")
    monkeypatch.setitem(demo.SETTINGS, "mnist", small)
    result = demo.run("mnist", output=tmp_path, progress=False, n_importance=10)
    assert {path.name for path in result.pictures} == PICTURES
    assert result.history.n_steps == 3
    assert settings.is_dynamic


def test_mnist_that_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZSP_DATA", str(tmp_path))
    monkeypatch.setenv("ZSP_CACHE", str(tmp_path))
    assert main(["demo", "--data", "mnist", "--output", str(tmp_path / "out")]) == 1
    assert "python -m zsp download mnist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_names_the_extra_before_training(tmp_path, monkeypatch, capsys):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert 'pip install "zsp[plot]"' in captured.err
    assert "trained" not in captured.out


def test_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "download", lambda name: tmp_path / f"{name}.npz")
    assert main(["download", "mnist"]) == 0
    assert "mnist is in" in capsys.readouterr().out


def test_download_without_a_network(monkeypatch, capsys):
    def fail(name):
        raise OSError("cannot download: no network.")

    monkeypatch.setattr(datasets, "download", fail)
    assert main(["download", "mnist"]) == 1
    assert "cannot download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["demo", "--epochs", "0"], "must be a whole number of at least 1, got '0'"),
        (["demo", "--epochs", "many"], "got 'many'"),
        (["demo", "--data", "cifar"], "invalid choice: 'cifar'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_options(argv, text, capsys):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert text in capsys.readouterr().err


def test_help_says_how_long_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--no-progress" in out
    assert demo.SETTINGS["digits"].duration in out
    assert "None" not in out


@pytest.mark.gpu
def test_the_demo_runs_on_cuda(tmp_path):
    on_cuda = demo.run(epochs=20, output=tmp_path, progress=False, n_importance=50, device="cuda")
    on_cpu = demo.run(epochs=20, output=tmp_path, progress=False, n_importance=50)
    assert all(p.is_cuda for net in on_cuda.nets for p in net.parameters())
    # other random numbers, so another run: the spread of the test ELBO over seeds after 20 epochs is some tenths of a nat
    assert abs(on_cuda.elbo.value - on_cpu.elbo.value) < 3.0
