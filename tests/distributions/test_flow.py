import pickle

import pytest
import torch
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

import zsp
from zsp.distributions import Flow, Normal

D = 3


@pytest.fixture(scope="module")
def transforms():
    import pyro.distributions.transforms

    return pyro.distributions.transforms


TRANSFORMS = {  # name -> whether the inverse is known
    "planar": False,
    "radial": False,
    "Sylvester": False,
    "affine_coupling": True,  # RealNVP
    "affine_autoregressive": True,  # MAF; its inverse is IAF
    "spline_coupling": True,
    "spline_autoregressive": True,
    "householder": True,
}
CONDITIONAL = ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline_autoregressive")


def log_density_by_autograd(transform, z):
    """Of each draw, given its z of shape [n, D] and a map of one z."""
    jacobians = torch.stack([torch.autograd.functional.jacobian(transform, one) for one in z])
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - torch.linalg.slogdet(jacobians).logabsdet


def learned(module, scale):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape)
    return module


def make(transforms, name):
    factory = zsp.distributions.Sylvester if name == "Sylvester" else getattr(transforms, name)
    return learned(factory(D), 0.3)


@pytest.mark.parametrize("name, known", TRANSFORMS.items(), ids=TRANSFORMS)
def test_density_of_draws_is_exact(transforms, name, known):
    transform = make(transforms, name)
    flow = Flow(Normal(torch.zeros(D), 1.0), transform)
    torch.manual_seed(1)
    x = flow.rsample((5,))
    torch.manual_seed(1)
    expected = log_density_by_autograd(transform, torch.randn(5, D))
    torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-9, rtol=0)
    assert flow.batch_shape == () and flow.event_shape == (D,)
    if known:
        torch.testing.assert_close(flow.log_prob(x.detach().clone()), expected, atol=1e-7, rtol=0)
    else:
        with pytest.raises(
            NotImplementedError, match=f"inverse of the transform {type(transform).__name__} is unknown"
        ):
            flow.log_prob(x.detach().clone())


@pytest.mark.parametrize("name", CONDITIONAL)
def test_density_given_a_context_is_exact(transforms, name):
    module = learned(getattr(transforms, f"conditional_{name}")(D, context_dim=2), 0.1)
    context = torch.randn(4, 2)
    flow = Flow(Normal(torch.zeros(4, D), 1.0), module.condition(context))
    torch.manual_seed(1)
    x = flow.rsample((6,))
    assert x.shape == (6, 4, D) and flow.batch_shape == (4,)
    torch.manual_seed(1)
    z = torch.randn(6, 4, D)
    for i in range(4):
        expected = log_density_by_autograd(module.condition(context[i]), z[:, i])
        torch.testing.assert_close(flow.log_prob(x)[:, i], expected, atol=1e-10, rtol=0)


def test_chains_of_transforms_inverses_and_scalars(transforms):
    first, second = learned(transforms.planar(D), 0.1), learned(transforms.affine_autoregressive(D), 0.1)
    chain = [first, AffineTransform(1.0, 2.0), second.inv, SigmoidTransform()]  # second.inv: IAF, slow to invert
    flow = Flow(Normal(torch.zeros(D), 1.0), chain)
    torch.manual_seed(1)
    x = flow.rsample((5,))
    torch.manual_seed(1)

    def apply(z):
        for transform in chain:
            z = transform(z)
        return z

    torch.testing.assert_close(flow.log_prob(x), log_density_by_autograd(apply, torch.randn(5, D)), atol=1e-10, rtol=0)


def test_elements_of_a_scalar_flow_are_a_batch():
    flow = Flow(Normal(torch.zeros(2, 3), 1.0), [AffineTransform(1.0, 2.0), ExpTransform()])
    x = flow.rsample((4,))
    assert flow.batch_shape == (2, 3) and flow.event_shape == ()
    expected = zsp.distributions.LogNormal(torch.ones(2, 3), 2.0).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected)
    torch.testing.assert_close(flow.log_prob(x.clone()), expected)


@pytest.mark.parametrize("name", ["affine_coupling", "affine_autoregressive", "spline_coupling"])
def test_the_score_of_a_draw_without_gradient(transforms, name):
    # transforms remember the z of their last draw; at a fixed value it moves with their parameters
    module = learned(getattr(transforms, name)(D), 0.1)
    flow = Flow(Normal(torch.zeros(D), 1.0), module)
    x = flow.sample((5,))
    assert not x.requires_grad
    parameters = list(module.parameters())
    found = torch.autograd.grad(flow.log_prob(x).sum(), parameters, allow_unused=True)
    fresh = Flow(Normal(torch.zeros(D), 1.0), module)
    expected = torch.autograd.grad(fresh.log_prob(x.clone()).sum(), parameters, allow_unused=True)
    assert any(bool(gradient.abs().max() > 0.01) for gradient in expected if gradient is not None)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    # the derivative is that of differences, which evaluate the density at the same value anew
    parameter, gradient = next((p, g) for p, g in zip(parameters, found, strict=True) if g is not None)
    direction, h = torch.randn(parameter.shape), 1e-6
    with torch.no_grad():
        parameter += h * direction
        above = Flow(Normal(torch.zeros(D), 1.0), module).log_prob(x.clone()).sum()
        parameter -= 2 * h * direction
        below = Flow(Normal(torch.zeros(D), 1.0), module).log_prob(x.clone()).sum()
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * h), atol=1e-5, rtol=1e-5)


def test_sylvester_layers():
    layer = learned(zsp.distributions.Sylvester(4, n_reflections=2), 1.0)
    q = layer._orthogonal()
    torch.testing.assert_close(q @ q.mT, torch.eye(4))
    assert len(list(layer.parameters())) == 4 and len({layer, layer}) == 1
    state = zsp.distributions.Sylvester(4, 2)
    state.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(state(x), layer(x))
    copied = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(copied(x), layer(x))
    assert copied.float()(x.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="from 1 on, but got 0 and 1"):
        zsp.distributions.Sylvester(0, 1)
