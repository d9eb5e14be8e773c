"""Nets: values, distributions, observations, log probabilities."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from scipy import stats

import zsp


def linear_net(observed=None, n=4, n_samples=None):
    bn = zsp.BayesianNet(observed)
    w = bn.normal("w", torch.zeros(3), std=2.0, group_ndims=1, n_samples=n_samples)
    mean = bn.deterministic("mean", w @ torch.ones(3, n))
    bn.normal("y", mean, std=0.5, group_ndims=1)
    return bn


def test_a_node_method_returns_a_plain_tensor():
    bn = zsp.BayesianNet()
    assert type(bn.normal("x", torch.zeros(2), std=1.0)) is torch.Tensor


def test_an_observation_is_returned_and_a_draw_otherwise():
    y = torch.randn(4)
    bn = linear_net({"y": y})
    assert torch.equal(bn["y"].tensor, y)
    assert bn["y"].is_observed() and not bn["w"].is_observed()
    assert bn["w"].shape == (3,)


def test_draws_differ_and_follow_the_seed():
    torch.manual_seed(1)
    first, second = linear_net()["w"].tensor, linear_net()["w"].tensor
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(linear_net()["w"].tensor, first)


@pytest.mark.parametrize("n_samples", [None, 1, 3])
def test_n_samples_adds_one_leading_axis(n_samples):
    bn = linear_net(n_samples=n_samples)
    sample = [] if n_samples is None else [n_samples]
    assert list(bn["w"].shape) == [*sample, 3]
    assert list(bn["y"].shape) == [*sample, 4]
    assert list(bn.log_joint().shape) == sample


def test_log_probabilities_are_the_closed_form():
    w, y = torch.randn(3), torch.randn(4)
    bn = linear_net({"w": w, "y": y})
    log_pw = stats.norm(0, 2).logpdf(w.numpy()).sum()
    log_py = stats.norm(w.sum().item(), 0.5).logpdf(y.numpy())
    np.testing.assert_allclose(bn.cond_log_prob("w"), log_pw, atol=1e-10)
    np.testing.assert_allclose(bn.cond_log_prob(["w", "y"])[1], log_py.sum(), atol=1e-10)
    np.testing.assert_allclose(bn.pointwise_log_prob("y"), log_py, atol=1e-10)
    np.testing.assert_allclose(bn.log_joint(), log_pw + log_py.sum(), atol=1e-10)
    np.testing.assert_allclose(bn["y"].cond_log_p, log_py.sum(), atol=1e-10)


def test_nodes_are_read_by_name_in_order():
    bn = linear_net()
    assert list(bn.nodes) == ["w", "mean", "y"]
    assert len(bn.nodes) == 3 and "w" in bn.nodes
    w, mean = bn.get(["w", "mean"])
    assert isinstance(w, zsp.StochasticTensor) and w.name == "w" and w.bn is bn
    assert type(mean) is torch.Tensor
    assert isinstance(w.dist, torch.distributions.Normal)
    assert isinstance(bn.get("w"), zsp.StochasticTensor)


def test_a_stochastic_tensor_is_used_like_its_tensor():
    bn = linear_net()
    w, tensor = bn["w"], bn["w"].tensor
    assert torch.equal(w + 1, tensor + 1)
    assert torch.equal(1 - w, 1 - tensor)
    assert torch.equal(w @ torch.ones(3), tensor @ torch.ones(3))
    assert torch.equal(torch.exp(w), tensor.exp())
    assert torch.equal(torch.stack([w, w]), torch.stack([tensor, tensor]))
    assert torch.equal(w.mean(), tensor.mean())
    assert torch.equal(w[0], tensor[0]) and len(w) == 3
    assert torch.equal(-w, -tensor) and torch.equal(w > 0, tensor > 0)
    np.testing.assert_array_equal(np.asarray(w), tensor.numpy())
    other = zsp.BayesianNet()
    assert torch.equal(other.normal("v", w, std=1.0), other["v"].tensor)
    assert other["v"].dist.loc is not None and torch.equal(other["v"].dist.loc, tensor)


def test_gradients_flow_through_reparameterised_draws_only():
    mean = torch.zeros(3, requires_grad=True)
    bn = zsp.BayesianNet()
    assert bn.normal("a", mean, std=1.0).requires_grad
    assert not bn.normal("b", mean, std=1.0, is_reparameterized=False).requires_grad


def test_parameters_that_are_numbers_follow_the_given_value():
    value = torch.randn(3, dtype=torch.float32)
    bn = zsp.BayesianNet({"x": value})
    assert bn.normal("x", 0.0, std=1.0) is value
    assert bn.cond_log_prob("x").dtype == torch.float32


def test_observations_may_be_numbers_arrays_and_integers():
    bn = zsp.BayesianNet({"a": 1.5, "b": np.array([1.0, 2.0]), "c": torch.tensor([1, 2])})
    assert bn.normal("a", torch.zeros(()), std=1.0).item() == 1.5
    assert torch.equal(bn.normal("b", torch.zeros(2), std=1.0), torch.tensor([1.0, 2.0]))
    assert bn.normal("c", torch.zeros(2), std=1.0).dtype == torch.float64


def test_any_torch_distribution_can_be_a_node():
    value = torch.tensor([0.3, 1.2])
    bn = zsp.BayesianNet({"x": value})
    dist = torch.distributions.Gumbel(torch.zeros(2), torch.ones(2))
    bn.stochastic("x", dist, group_ndims=1)
    np.testing.assert_allclose(bn.log_joint(), stats.gumbel_r.logpdf(value.numpy()).sum(), atol=1e-12)


def test_torch_categorical_keeps_integers():
    logits = torch.zeros(4, 3)
    bn = zsp.BayesianNet()
    assert bn.stochastic("k", torch.distributions.Categorical(logits=logits)).dtype == torch.int64
    given = zsp.BayesianNet({"k": torch.tensor([0, 1, 2, 0])})
    assert given.stochastic("k", torch.distributions.Categorical(logits=logits)).dtype == torch.int64


def test_a_mask_removes_terms_and_their_gradients():
    mean = torch.zeros(3, requires_grad=True)
    value = torch.tensor([1.0, float("nan"), 3.0])
    bn = zsp.BayesianNet({"x": value})
    bn.normal("x", mean, std=1.0, group_ndims=1, mask=torch.tensor([True, False, True]))
    expected = stats.norm.logpdf([1.0, 3.0])
    np.testing.assert_allclose(bn.log_joint().item(), expected.sum(), atol=1e-12)
    np.testing.assert_allclose(bn.pointwise_log_prob("x").detach(), [expected[0], 0.0, expected[1]], atol=1e-12)
    bn.log_joint().backward()
    np.testing.assert_allclose(mean.grad, [1.0, 0.0, 3.0], atol=1e-12)


@pytest.mark.parametrize("n_samples", [None, 1, 5])
@pytest.mark.parametrize("group_ndims", [0, 1])
def test_total_size_scales_the_log_joint_only(n_samples, group_ndims):
    y = torch.randn(4)
    bn = zsp.BayesianNet({"y": y})
    loc = torch.zeros(4) if group_ndims == 0 else torch.zeros(())
    z = bn.normal("z", loc, std=1.0, n_samples=n_samples)
    mean = z if group_ndims == 0 else z.unsqueeze(-1).expand(*z.shape, 4)
    bn.normal("y", mean, std=1.0, group_ndims=group_ndims, total_size=12)
    log_pz, log_py = bn.cond_log_prob(["z", "y"])
    np.testing.assert_allclose(bn.log_joint(), log_pz + 3 * log_py, atol=1e-12)
    assert bn.pointwise_log_prob("y").shape == bn["y"].dist.batch_shape


def test_a_cached_log_probability_does_not_lose_gradients():
    mean = torch.zeros(3, requires_grad=True)
    bn = zsp.BayesianNet({"x": torch.ones(3)})
    bn.normal("x", mean, std=1.0, group_ndims=1)
    with torch.no_grad():
        bn.log_joint()
    bn.log_joint().backward()
    np.testing.assert_allclose(mean.grad, np.ones(3))


def test_dropping_a_net_frees_its_values_at_once():
    gc.disable()
    try:
        bn = linear_net()
        bn.log_joint()
        view = bn["w"]
        reference = weakref.ref(view.tensor)
        del view, bn
        assert reference() is None
    finally:
        gc.enable()


def test_repr_and_html_show_the_nodes():
    bn = linear_net({"y": torch.randn(4)})
    text = repr(bn)
    assert "'w': normal [3] float64" in text and "'y': normal [4] float64, observed" in text
    assert "'mean': deterministic [4] float64" in text
    page = bn._repr_html_()
    assert "<td>normal</td>" in page and "<td>[3]</td>" in page and "<td>yes</td>" in page
    assert "'w': normal [3] float64" in repr(bn["w"])
    assert repr(zsp.BayesianNet()) == "BayesianNet(no nodes)"


def test_nets_in_threads_do_not_see_each_other():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        barrier.wait(timeout=10)
        bn.normal("x", torch.zeros(2), std=1.0)
        return bn

    barrier = threading.Barrier(4)
    results = {}

    def run(value):
        results[value] = model().observe(x=torch.full((2,), float(value)))["x"].tensor[0].item()

    threads = [threading.Thread(target=run, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}


def test_a_density_only_node_raises_when_its_value_is_used():
    bn = zsp.BayesianNet()
    x = bn.unnormalized_multinomial("x", torch.zeros(3))
    for use in (lambda: x + 1, lambda: torch.exp(x), lambda: x.shape, lambda: bn["x"].tensor, bn.log_joint):
        with pytest.raises(NotImplementedError, match=r"node 'x' \(unnormalized_multinomial\) is not observed"):
            use()
    given = zsp.BayesianNet({"x": torch.tensor([1.0, 0.0, 2.0])})
    given.unnormalized_multinomial("x", torch.zeros(3))
    np.testing.assert_allclose(given.log_joint(), 3 * np.log(1 / 3))


