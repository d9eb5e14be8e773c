"""Models: inputs, observations, variables, modules, pickles."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import zsp


@zsp.meta_bayesian_net(scope="regression")
def regression(x, alpha=1.0):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(x.shape[-1]), std=alpha, group_ndims=1)
    bn.normal("y", x @ w, std=0.5, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def generator(n, z_dim=2, x_dim=3):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, z_dim), std=1.0, group_ndims=1)
    mean = zsp.module("decoder", nn.Linear, z_dim, x_dim)(z)
    bn.normal("x", mean, logstd=zsp.parameter("logstd", torch.zeros(x_dim)), group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def recognition(x, z_dim=2):
    bn = zsp.BayesianNet()
    bn.normal("z", zsp.module("mean", nn.Linear, x.shape[-1], z_dim)(x), std=1.0, group_ndims=1)
    return bn


def test_observe_gives_nets_in_any_configuration():
    model = regression(torch.randn(5, 3))
    w = torch.randn(3)
    bn = model.observe(w=w)
    assert torch.equal(bn["w"].tensor, w) and not bn["y"].is_observed()
    assert model.observe(y=torch.zeros(5))["y"].is_observed()
    assert list(model.observe().nodes) == ["w", "y"]


def test_forward_is_the_log_joint_of_a_mapping():
    model = regression(torch.randn(5, 3))
    values = {"w": torch.randn(3), "y": torch.randn(5)}
    assert torch.equal(model(values), model.observe(**values).log_joint())


def test_a_key_that_names_an_input_rebinds_it():
    model = regression()
    x, w, y = torch.randn(5, 3), torch.randn(3), torch.randn(5)
    bound = regression(x).observe(w=w, y=y).log_joint()
    assert torch.equal(model({"x": x, "w": w, "y": y}), bound)
    assert torch.equal(model.observe(x=x, w=w, y=y).log_joint(), bound)
    smaller = model({"x": x[:2], "w": w, "y": y[:2]})
    assert torch.equal(smaller, regression(x[:2]).observe(w=w, y=y[:2]).log_joint())


def test_bind_gives_a_view_with_the_same_variables():
    model = generator(4)
    view = model.bind(n=2)
    view.materialize()
    assert view.observe()["x"].shape == (2, 3) and model.observe()["x"].shape == (4, 3)
    assert dict(model.named_parameters()).keys() == {"gen.decoder.weight", "gen.decoder.bias", "gen.logstd"}
    assert all(a is b for a, b in zip(model.parameters(), view.parameters(), strict=True))
    assert len(model._modules["gen"]._modules) == 1


def test_variables_are_made_once_per_call_of_the_decorated_function():
    model = generator(2).materialize()
    first = [p.clone() for p in model.parameters()]
    model.observe()
    assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))
    other = generator(2).materialize()
    weight = "gen.decoder.weight"
    assert not torch.equal(other.state_dict()[weight], model.state_dict()[weight])


def test_reuse_variables_keeps_one_set_and_new_makes_another():
    q = recognition.new()
    x = torch.randn(4, 3)
    q(x)
    first = next(q.parameters())
    q(x)
    assert next(q.parameters()) is first
    other = q.new()
    other(x)
    assert next(other.parameters()) is not first

    @zsp.reuse_variables("square")
    def scaled(x):
        return zsp.parameter("scale", 2.0) * x

    assert scaled(3.0).item() == 6.0


def test_modules_and_parameters_given_as_arguments_belong_to_the_net():
    @zsp.meta_bayesian_net()
    def model(net, layers, scale, data):
        bn = zsp.BayesianNet()
        bn.normal("x", layers[0](net(data)), std=scale, group_ndims=2)
        return bn

    net, layers, scale = nn.Linear(3, 3), [nn.Linear(3, 2)], nn.Parameter(torch.ones(()))
    bound = model(net, layers, scale, torch.randn(5, 3))
    names = set(dict(bound.named_parameters()))
    assert names == {"net.weight", "net.bias", "layers.0.weight", "layers.0.bias", "scale"}
    assert set(bound.state_dict()) == names
    assert bound.float().observe()["x"].dtype == torch.float32


def test_a_torch_function_call_swaps_the_variables():
    model = generator(2).materialize()
    values = {"z": torch.randn(2, 2), "x": torch.randn(2, 3)}
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    swapped = torch.func.functional_call(model, zeros, (values,))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(torch.cat([values["z"], values["x"]], -1)).sum(-1)
    np.testing.assert_allclose(swapped.detach(), expected, atol=1e-12)


def test_the_log_joint_is_settable():
    x = torch.randn(4, 2)
    model = regression(x)
    values = {"w": torch.randn(2), "y": torch.randn(4)}
    default = model(values)

    def log_joint(bn):
        return 2 * bn.log_joint() + bn.cond_log_prob("w")

    model.log_joint = log_joint
    bn = model.observe(**values)
    np.testing.assert_allclose(bn.log_joint(), 2 * default + bn.cond_log_prob("w"))
    assert model.log_joint is log_joint
    model.log_joint = None
    assert torch.equal(model(values), default)


def test_a_log_joint_that_is_a_module_belongs_to_the_net():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(0.5))

        def forward(self, bn):
            return bn.log_joint() * self.temperature

    model = regression(torch.randn(4, 2))
    values = {"w": torch.randn(2), "y": torch.randn(4)}
    default = model(values)
    model.log_joint = Tempered()
    np.testing.assert_allclose(model(values).detach(), 0.5 * default)
    assert [p.item() for p in model.parameters()] == [0.5]
    assert isinstance(copy.deepcopy(model).log_joint, Tempered)
    model.log_joint = None
    assert list(model.parameters()) == []


def test_a_net_built_inside_sees_no_outer_observation():
    @zsp.meta_bayesian_net()
    def inner():
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(2), std=1.0)
        return bn

    @zsp.meta_bayesian_net()
    def outer():
        bn = zsp.BayesianNet()
        nets.append(inner().observe())
        bare = zsp.BayesianNet()
        bare.normal("z", torch.zeros(2), std=1.0)
        nets.append(bare)
        bn.normal("z", torch.zeros(2), std=1.0)
        bn.normal("x", bn["z"], std=1.0)
        return bn

    nets = []
    z = torch.ones(2)
    bn = outer().observe(z=z)
    assert torch.equal(bn["z"].tensor, z)
    assert not any(net["z"].is_observed() for net in nets)


def test_the_net_that_is_returned_is_observed_even_if_another_is_made_first():
    @zsp.meta_bayesian_net()
    def model():
        first = zsp.BayesianNet()
        first.normal("z", torch.zeros(2), std=1.0)
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(2), std=1.0)
        nets.append(first)
        return bn

    nets = []
    bound = model()
    for _ in range(2):
        assert torch.equal(bound.observe(z=torch.ones(2))["z"].tensor, torch.ones(2))
    assert not nets[-1]["z"].is_observed()


def test_a_net_with_observations_of_its_own_keeps_them():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet({"z": torch.zeros(2)})
        bn.normal("z", torch.zeros(2), std=1.0)
        return bn

    assert model().observe()["z"].is_observed()
    with pytest.raises(ValueError, match="made with observations of its own"):
        model().observe(z=torch.ones(2))


def test_a_net_of_another_model_function_takes_no_observations():
    @zsp.meta_bayesian_net()
    def inner():
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(2), std=1.0)
        return bn

    @zsp.meta_bayesian_net()
    def outer():
        return inner().observe()

    assert outer().observe()["z"].tensor.shape == (2,)
    with pytest.raises(ValueError, match="'outer' returns was made by another model function.* cannot take those for 'z'"):
        outer().observe(z=torch.ones(2))


def test_copies_are_independent():
    model = generator(2).materialize()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert model.state_dict()["gen.decoder.weight"].abs().sum() > 0
    assert other.observe()["x"].shape == (2, 3)

    @zsp.meta_bayesian_net()
    def local():
        bn = zsp.BayesianNet()
        bn.normal("x", 0.0, std=1.0)
        return bn

    assert copy.deepcopy(local()).observe()["x"].shape == ()
    q = copy.deepcopy(recognition.new().materialize(torch.randn(2, 3)))
    assert q(torch.randn(2, 3))["z"].shape == (2, 2)


def test_pickle_keeps_function_inputs_and_state():
    model = generator(2).materialize()
    again = pickle.loads(pickle.dumps(model))
    values = {"z": torch.randn(2, 2), "x": torch.randn(2, 3)}
    assert torch.equal(again(values), model(values))
    q = recognition.new().materialize(torch.randn(2, 3))
    x = torch.randn(2, 3)
    assert torch.equal(pickle.loads(pickle.dumps(q))(x)["z"].dist.loc, q(x)["z"].dist.loc)
    fresh = pickle.loads(pickle.dumps(generator(2)))
    assert fresh.materialize().observe()["x"].shape == (2, 3)

    @zsp.meta_bayesian_net()
    def local():
        return zsp.BayesianNet()

    with pytest.raises(pickle.PicklingError, match="define it at the top level of a module"):
        pickle.dumps(local())


def test_a_pickled_net_loads_in_another_process(tmp_path):
    path = tmp_path / "model.pickle"
    model = generator(2).materialize()
    path.write_bytes(pickle.dumps(model))
    code = f"import pickle, torch; m = pickle.load(open({str(path)!r}, 'rb')); print(m.state_dict()['gen.decoder.bias'].tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(printed) == model.state_dict()["gen.decoder.bias"].tolist()


def test_state_dict_works_before_the_first_execution():
    trained = generator(2).materialize()
    fresh = generator(2)
    assert set(fresh.state_dict()) == set(trained.state_dict())
    other = generator(2)
    other.load_state_dict(trained.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), trained.parameters(), strict=True))
    container = nn.ModuleList([generator(2)])
    container.load_state_dict(nn.ModuleList([trained]).state_dict())
    assert torch.equal(next(container[0].parameters()), next(trained.parameters()))


def test_moving_a_net_moves_its_variables_and_inputs():
    model = generator(2).materialize().float()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    moved = regression(torch.randn(4, 2)).to(torch.float32)
    assert moved._input("x").dtype == torch.float32


def test_train_and_eval_reach_the_variables():
    @zsp.meta_bayesian_net(reuse_variables=True)
    def model():
        bn = zsp.BayesianNet()
        bn.normal("x", zsp.module("dropout", nn.Dropout, 0.5)(torch.ones(50)), std=1.0)
        return bn

    bound = model().eval()
    assert torch.equal(bound.observe()["x"].dist.loc, torch.ones(50))
    assert (bound.train().observe()["x"].dist.loc == 0).any()


def test_methods_can_be_decorated():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        @zsp.meta_bayesian_net()
        def net(self, n):
            bn = zsp.BayesianNet()
            bn.normal("x", self.linear(torch.ones(n, 2)), std=1.0)
            return bn

    bound = Model().net(3)
    assert bound.observe()["x"].shape == (3, 2)
    assert len(list(bound.parameters())) == 2


def test_the_signature_and_docstring_of_a_model_function_are_kept():
    assert regression.__name__ == "regression"
    assert "regression(x=tensor[4, 2], alpha=1.0)" in repr(regression(torch.zeros(4, 2)))
    assert "recognition(x, z_dim=2)" in repr(recognition)
