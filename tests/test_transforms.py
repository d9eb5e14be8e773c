"""Nets under torch's own machinery: compile, functional calls, ensembles, data parallelism; CUDA."""

import numpy as np
import pytest
import torch
from torch import nn

import zsp


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def generator(n, x_dim=6, z_dim=2, n_samples=None):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, z_dim), std=1.0, group_ndims=1, n_samples=n_samples)
    h = torch.relu(zsp.module("hidden", nn.Linear, z_dim, 8)(z))
    bn.bernoulli("x", zsp.module("logits", nn.Linear, 8, x_dim)(h), group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def recognition(x, z_dim=2, n_samples=None):
    bn = zsp.BayesianNet()
    h = torch.relu(zsp.module("hidden", nn.Linear, x.shape[-1], 8)(x))
    mean, logstd = zsp.module("mean", nn.Linear, 8, z_dim)(h), zsp.module("logstd", nn.Linear, 8, z_dim)(h)
    bn.normal("z", mean, logstd=logstd, group_ndims=1, n_samples=n_samples)
    return bn


def vae(n=5, n_samples=None):
    x = torch.bernoulli(torch.full((n, 6), 0.5))
    model, q = generator(n, n_samples=n_samples).materialize(), recognition.new()
    q.materialize(x)

    def loss(x):
        axis = None if n_samples is None else 0
        bound = zsp.elbo(model, {"x": x}, variational=q(x, n_samples=n_samples), axis=axis)
        return bound.sgvb().mean()

    return model, q, loss, x


def seeded(function, *args):
    torch.manual_seed(3)
    return function(*args)


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_whole_loss_compiles_without_a_graph_break(dtype, n_samples):
    torch.set_default_dtype(dtype)
    model, q, loss, x = vae(n_samples=n_samples)
    parameters = [*model.parameters(), *q.parameters()]
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    a, b = seeded(loss, x), seeded(compiled, x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(b.detach(), a.detach(), rtol=tolerance)
    gradients = zip(torch.autograd.grad(a, parameters), torch.autograd.grad(b, parameters), strict=True)
    for eager, ours in gradients:
        np.testing.assert_allclose(ours, eager, rtol=tolerance, atol=tolerance)


def test_inductor_gives_the_eager_loss():
    torch.set_default_dtype(torch.float32)
    _, _, loss, x = vae()
    torch._dynamo.reset()
    with torch._inductor.config.patch(fallback_random=True):  # the same random numbers as eager code
        compiled = seeded(torch.compile(loss, fullgraph=True), x)
    np.testing.assert_allclose(compiled.detach(), seeded(loss, x).detach(), rtol=1e-5)


def test_a_compiled_net_is_a_callable_on_a_dict():
    model, q, _, x = vae()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    values = {"z": torch.randn(5, 2), "x": x}
    np.testing.assert_allclose(compiled(values).detach(), model(values).detach(), rtol=1e-12)
    bound = zsp.elbo(compiled, {"x": x}, variational=q(x))
    assert bound.bn is None and bound.shape == (5,)


def test_an_ensemble_of_parameters_is_one_vmap():
    model, _, _, x = vae()
    values = {"z": torch.randn(5, 2), "x": x}
    stacked = {name: torch.stack([p, 2 * p]).detach() for name, p in model.named_parameters()}
    both = torch.func.vmap(lambda p: torch.func.functional_call(model, p, (values,)))(stacked)
    for i in range(2):
        one = {name: p[i] for name, p in stacked.items()}
        np.testing.assert_allclose(both[i], torch.func.functional_call(model, one, (values,)).detach(), rtol=1e-12)


def test_latents_may_be_mapped_over():
    model, _, _, x = vae()
    z = torch.randn(7, 5, 2)
    mapped = torch.func.vmap(lambda z: model({"z": z, "x": x}))(z)
    np.testing.assert_allclose(mapped.detach(), torch.stack([model({"z": v, "x": x}) for v in z]).detach(), rtol=1e-12)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_net_in_distributed_data_parallel(process_group):
    model, _, _, x = vae()
    values = {"z": torch.randn(5, 2), "x": x}
    parallel = nn.parallel.DistributedDataParallel(model)
    loss = -parallel(values).mean()
    np.testing.assert_allclose(loss.detach(), -model(values).mean().detach())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_variable_is_created_in_a_distributed_forward(process_group):
    @zsp.meta_bayesian_net(scope="late", reuse_variables=True)
    def late(n):
        bn = zsp.BayesianNet()
        scale = zsp.parameter("first", 1.0)
        if n > 1:
            scale = scale * zsp.parameter("second", 1.0)
        bn.normal("x", torch.zeros(n), std=scale.exp())
        return bn

    parallel = nn.parallel.DistributedDataParallel(late(1).materialize())
    with pytest.raises(RuntimeError, match=r"'second' of 'late' would be created inside a DistributedDataParallel forward"):
        parallel({"n": 2})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_training_step_on_cuda(dtype):
    torch.set_default_dtype(dtype)
    model, q, loss, x = vae(n_samples=3)
    on_cpu = {name: p.clone() for name, p in model.named_parameters()}
    torch.set_default_device("cuda")
    try:
        model.cuda(), q.cuda()
        x = x.cuda()
        optimizer = torch.optim.Adam([*model.parameters(), *q.parameters()], 1e-2)
        history = zsp.fit(lambda batch: loss(batch["x"]), {"x": x}, optimizer=optimizer, epochs=3, progress=False)
        assert np.isfinite(history["loss"]).all()
        assert all(p.is_cuda and not torch.equal(p.cpu(), on_cpu[name].cpu()) for name, p in model.named_parameters())
        estimate = zsp.is_loglikelihood(model, {"x": x}, proposal=lambda: q(x, n_samples=8), n_samples=20, chunk=4)
        assert estimate.is_cuda and estimate.shape == (5,) and estimate.dtype == dtype
    finally:
        torch.set_default_device(None)


@pytest.mark.gpu
def test_devices_that_differ_on_cuda():
    bn = zsp.BayesianNet({"x": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"the value is on cpu, but the node's parameters are on cuda:0"):
        bn.normal("x", torch.zeros(3, device="cuda"), std=1.0)
    number = zsp.BayesianNet({"x": torch.zeros(3, device="cuda")})
    assert number.normal("x", 0.0, std=1.0, n_samples=3).is_cuda and number.log_joint().is_cuda
