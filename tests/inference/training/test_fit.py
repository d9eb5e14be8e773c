"""The training loop: results, seeds, history, errors."""

import numpy as np
import pytest
import torch
from torch import nn

import zsp


def problem(lr=0.1):
    weight = nn.Parameter(torch.zeros(2))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0])
    loss = lambda batch: ((batch["x"] @ weight - batch["y"]) ** 2).mean()  # noqa: E731
    return weight, {"x": x, "y": y}, loss, torch.optim.SGD([weight], lr)


def run(**options):
    weight, data, loss, optimizer = problem()
    history = zsp.fit(loss, data, optimizer=optimizer, progress=False, **options)
    return weight.detach(), history


def test_it_minimises():
    weight, history = run(epochs=60, batch_size=5)
    np.testing.assert_allclose(weight, [1.0, -2.0], atol=1e-4)
    assert len(history) == 60 and history.n_steps == 240
    assert history["loss"][-1] < 1e-6 < history["loss"][0]


def test_the_same_seed_gives_the_same_run_and_gives_back_the_callers_state():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, _ = run(epochs=2, batch_size=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again, _ = run(epochs=2, batch_size=3, seed=1)
    other, _ = run(epochs=2, batch_size=3, seed=2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_equals_a_loop_written_by_hand():
    weight, data, loss, optimizer = problem()
    for _ in range(3):
        for start in range(0, 20, 8):
            optimizer.zero_grad()
            loss({name: value[start : start + 8] for name, value in data.items()}).backward()
            optimizer.step()
    fitted, history = run(epochs=3, batch_size=8, shuffle=False)
    assert torch.equal(weight.detach(), fitted)
    assert history.n_steps == 9  # the last batch of an epoch has four


def test_every_datum_is_seen_once_an_epoch():
    weight, data, _, optimizer = problem()
    seen = []

    def loss(batch):
        seen.append(batch["y"].clone())
        return (weight**2).sum()

    zsp.fit(loss, data, optimizer=optimizer, epochs=2, batch_size=7, progress=False)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    np.testing.assert_array_equal(first.sort().values, data["y"].sort().values)
    np.testing.assert_array_equal(second.sort().values, data["y"].sort().values)
    assert not torch.equal(first, second) and [len(s) for s in seen[:3]] == [7, 7, 6]


def test_metrics_and_validation_are_recorded():
    weight, data, loss, optimizer = problem()
    history = zsp.fit(
        lambda batch: (loss(batch), {"size": len(batch["y"]), "norm": weight.norm()}),
        data,
        optimizer=optimizer,
        epochs=2,
        batch_size=10,
        validation=lambda: {"test": loss(data)},
        progress=False,
    )
    assert history["size"] == [10.0, 10.0] and len(history["test"]) == 2 and set(history) == {"loss", "size", "norm", "test"}
    assert "last: loss" in repr(history) and "test" in history
    with pytest.raises(KeyError, match="no metric 'elbo' was recorded; there are 'loss'"):
        history["elbo"]


def test_a_data_loader_is_gone_through_once_an_epoch():
    weight, data, _, optimizer = problem()
    dataset = torch.utils.data.TensorDataset(data["x"], data["y"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True)
    loss = lambda batch: ((batch[0] @ weight - batch[1]) ** 2).mean()  # noqa: E731
    history = zsp.fit(loss, loader, optimizer=optimizer, epochs=3, progress=False)
    assert history.n_steps == 12


def test_the_progress_bar_shows_the_metrics(capsys):
    weight, data, loss, optimizer = problem()
    zsp.fit(lambda b: (loss(b), {"mse": loss(b)}), data, optimizer=optimizer, epochs=2)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "mse=" in shown


def test_mistakes_are_explained():
    weight, data, loss, optimizer = problem()
    with pytest.raises(ValueError, match=r"scalar.*returned a tensor of shape \[20\]. Average over the batch"):
        zsp.fit(lambda b: (b["x"] @ weight - b["y"]) ** 2, data, optimizer=optimizer, progress=False)
    with pytest.raises(ValueError, match="one length along their first axis, but 'x' has 20, 'y' has 19"):
        zsp.fit(loss, {"x": data["x"], "y": data["y"][:19]}, optimizer=optimizer, progress=False)
    with pytest.raises(ValueError, match="batch_size divides a mapping of tensors"):
        zsp.fit(loss, [data], optimizer=optimizer, batch_size=3, progress=False)
    with pytest.raises(ValueError, match="epoch 1 had no mini-batch"):
        zsp.fit(loss, iter([data]), optimizer=optimizer, epochs=2, progress=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 20 and 0"):
        zsp.fit(loss, data, optimizer=optimizer, batch_size=0, progress=False)


def test_it_trains_a_net_on_mini_batches_with_a_smaller_last_one():
    @zsp.meta_bayesian_net(scope="regression", reuse_variables=True)
    def model(x):
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
        bn.normal("y", x @ w, std=0.1, group_ndims=1, total_size=20)
        return bn

    @zsp.reuse_variables("q")
    def q():
        bn = zsp.BayesianNet()
        bn.normal("w", zsp.parameter("mean", torch.zeros(2)), logstd=zsp.parameter("logstd", torch.zeros(2)), group_ndims=1)
        return bn

    _, data, _, _ = problem()
    bound = model()
    q.materialize()
    history = zsp.fit(
        lambda batch: zsp.elbo(bound, batch, variational=q).sgvb(),
        data,
        optimizer=torch.optim.Adam(q.parameters(), 0.05),
        epochs=100,
        batch_size=8,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]
    x, y = data["x"], data["y"]
    covariance = torch.linalg.inv(x.T @ x / 0.01 + torch.eye(2))
    mean = covariance @ x.T @ y / 0.01
    np.testing.assert_allclose(q.state_dict()["q.mean"], mean, atol=0.05)
