"""Every mistake of a newcomer has an error that says what was expected, what was got and what to do."""

import numpy as np
import pytest
import torch
from torch import nn

import zsp


def net(observed=None):
    return zsp.BayesianNet(observed)


def vae(n=4, **options):
    @zsp.meta_bayesian_net(scope="vae", **options)
    def model(n):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
        bn.bernoulli("x", z @ torch.ones(2, 3), group_ndims=1)
        return bn

    return model(n)


def variational(names=("z",), n=4):
    bn = zsp.BayesianNet()
    for name in names:
        bn.normal(name, torch.zeros(n, 2), std=1.0, group_ndims=1)
    return bn


# -- names ------------------------------------------------------------------------------------------------------------


def test_duplicate_name():
    bn = net()
    bn.normal("z", 0.0, std=1.0)
    with pytest.raises(ValueError, match=r"already has a node 'z', and node names are unique. Rename one"):
        bn.normal("z", 0.0, std=1.0)
    with pytest.raises(ValueError, match="already has a node 'z'"):
        bn.deterministic("z", torch.zeros(()))


def test_duplicate_name_is_found_after_the_first_execution_too():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        for name in names:
            bn.normal(name, 0.0, std=1.0)
        return bn

    names = ["a", "b"]
    bound = model()
    bound.observe()
    names = ["a", "a"]
    with pytest.raises(ValueError, match="already has a node 'a'"):
        bound.observe()


def test_unknown_observation():
    message = r"observations were given for 'xx', but the net 'vae' has no such node; its stochastic nodes are 'z', 'x'"
    for _ in range(2):
        with pytest.raises(ValueError, match=message + r" and its inputs 'n'. Did you mean 'x'\?"):
            vae().observe(xx=torch.zeros(4, 3))


def test_observing_a_deterministic_node():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.deterministic("mean", bn.normal("z", 0.0, std=1.0) * 2)
        return bn

    with pytest.raises(ValueError, match="'mean' cannot be observed: .* deterministic node.*Observe stochastic nodes: 'z'"):
        model().observe(mean=torch.zeros(()))


def test_forgotten_latent():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4, 2), std=1.0, group_ndims=1)
        w = bn.normal("w", torch.zeros(4, 2), std=1.0, group_ndims=1)
        bn.normal("x", z + w, std=1.0, group_ndims=1)
        return bn

    with pytest.raises(ValueError, match=r"the latent 'w' of the net 'model' is neither observed nor in the variational net"):
        zsp.elbo(model(), {"x": torch.zeros(4, 2)}, variational=variational())


def test_extra_variational_node():
    with pytest.raises(ValueError, match=r"the variational net has 'u', but the net 'vae' has no such node.*rename it"):
        zsp.elbo(vae(), {"x": torch.zeros(4, 3)}, variational=variational(("z", "u")))


def test_a_node_that_is_observed_and_variational():
    with pytest.raises(ValueError, match="'z' is both observed and a node of the variational net"):
        zsp.elbo(vae(), {"x": torch.zeros(4, 3), "z": torch.zeros(4, 2)}, variational=variational())


def test_reading_a_node_that_is_not_there():
    bn = vae().observe()
    with pytest.raises(KeyError) as error:
        bn["y"]
    assert str(error.value).startswith("the net 'vae' has no node 'y'; it has 'z', 'x'.")
    with pytest.raises(KeyError, match="no stochastic node 'y'"):
        bn.cond_log_prob(["z", "y"])
    bn = net()
    bn.deterministic("m", torch.zeros(()))
    with pytest.raises(KeyError, match="'m' of the net is deterministic.*no log probability"):
        bn.cond_log_prob("m")


def test_input_and_node_at_decoration():
    with pytest.raises(ValueError, match="'x' is both a parameter of the model function 'model' and the name of a node"):

        @zsp.meta_bayesian_net()
        def model(x):
            bn = zsp.BayesianNet()
            bn.normal("x", x, std=1.0)
            return bn


def test_input_and_node_with_a_name_made_at_run_time():
    @zsp.meta_bayesian_net()
    def model(x):
        bn = zsp.BayesianNet()
        bn.normal("".join(["x"]), x, std=1.0)
        return bn

    with pytest.raises(ValueError, match="'x' is both a parameter of the model function 'model'"):
        model(torch.zeros(2)).observe()


def test_an_unknown_argument_of_a_node_method():
    with pytest.raises(TypeError, match=r"bn.normal\('z', ...\) has no argument 'sdt'.*Did you mean 'std'\?"):
        net().normal("z", 0.0, sdt=1.0)
    with pytest.raises(TypeError, match="missing a required argument: 'logits'"):
        net().bernoulli("x")


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match="a node's name comes first and is a string, but got Tensor"):
        net().normal(torch.zeros(2), std=1.0)


def test_something_that_is_no_distribution():
    with pytest.raises(TypeError, match="needs a torch.distributions or pyro.distributions object as dist, but got float"):
        net().stochastic("z", 1.0)


def test_an_unknown_input():
    with pytest.raises(ValueError, match="the model 'vae' has no input 'm'; its inputs are 'n'"):
        vae().bind(m=3)


def test_a_missing_input():
    @zsp.meta_bayesian_net()
    def model(x):
        bn = zsp.BayesianNet()
        bn.normal("y", x, std=1.0)
        return bn

    with pytest.raises(ValueError, match=r"the input 'x' of the model 'model' has no value"):
        model().observe()


def test_a_function_that_returns_no_net():
    @zsp.meta_bayesian_net()
    def model():
        zsp.BayesianNet().normal("x", 0.0, std=1.0)

    with pytest.raises(TypeError, match=r"must return the BayesianNet that it declares, but it returned NoneType. Is 'return bn'"):
        model().observe()


def test_the_decorators_need_parentheses():
    with pytest.raises(TypeError, match="with parentheses"):

        @zsp.meta_bayesian_net
        def model():
            pass

    with pytest.raises(TypeError, match="with parentheses"):

        @zsp.reuse_variables
        def function():
            pass


# -- parameters -------------------------------------------------------------------------------------------------------


def test_both_or_neither_of_std_and_logstd():
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): exactly one of std=... and logstd=... is needed, but both were"):
        net().normal("z", 0.0, std=1.0, logstd=0.0)
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): exactly one of std=... and logstd=... is needed, but neither was"):
        net().normal("z", 0.0)


def test_parameters_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): the parameters do not broadcast: .*mean \[3\] and std \[4\]"):
        net().normal("z", torch.zeros(3), std=torch.ones(4))


def test_a_negative_scale():
    std = torch.tensor([1.0, -0.5, 2.0])
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): std must be positive, but it is -0.5 at index \[1\] \(shape \[3\], 1 of 3"):
        net().normal("z", torch.zeros(3), std=std)
    with pytest.raises(ValueError, match=r"std must be positive, but it is -1"):
        net().normal("z", 0.0, std=-1.0)


def test_a_nan_parameter():
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): mean must be a real number, not NaN, but it is nan at index \[0\]"):
        net().normal("z", torch.tensor([float("nan"), 0.0]), std=1.0)


def test_integer_parameters():
    with pytest.raises(TypeError, match=r"mean must be a floating-point tensor or a number, but it has dtype int64.*mean.float\(\)"):
        net().normal("z", torch.tensor([1, 2]), std=1.0)


def test_a_parameter_that_is_no_tensor():
    with pytest.raises(TypeError, match=r"mean must be a tensor or a number, but got list. Convert it: torch.as_tensor\(mean\)"):
        net().normal("z", [0.0, 1.0], std=1.0)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("uniform", {"minval": torch.tensor([0.0, 2.0]), "maxval": 1.0}, "minval must be below maxval.* at index \\[1\\]"),
        ("truncated_normal", {"mean": 0.0, "std": 1.0, "minval": 1.0, "maxval": 0.0}, "minval must be below maxval"),
        ("wishart", {"df": 1.5, "scale_tril": torch.eye(3)}, "df must be above 2, the number of rows less one"),
    ],
)
def test_parameters_that_do_not_fit_one_another(method, parameters, message):
    with pytest.raises(ValueError, match=rf"node 'x' \({method}\): {message}"):
        getattr(net(), method)("x", **parameters)


@pytest.mark.parametrize("group_ndims", [2, -1, 1.5])
def test_group_ndims_that_do_not_fit(group_ndims):
    with pytest.raises(ValueError, match=r"node 'z' \(normal\): group_ndims"):
        net().normal("z", torch.zeros(3), std=1.0, group_ndims=group_ndims)


def test_group_ndims_larger_than_the_batch_dims():
    message = r"group_ndims=2 sums the last 2 batch axes, but the parameters give only 1 \(batch shape \[3\], event shape \[\]\)"
    with pytest.raises(ValueError, match=message):
        net().normal("z", torch.zeros(3), std=1.0, group_ndims=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples must be None or an integer of at least 1, got 0"),
        ({"total_size": 0}, "total_size is the number of data in the whole set"),
        ({"mask": torch.ones(3, dtype=torch.float64)}, "mask must be a boolean tensor, got a torch.float64 tensor"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask of shape \[4\] does not broadcast to the batch shape \[3\]"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        net().normal("z", torch.zeros(3), std=1.0, **options)


def test_total_size_without_a_data_axis():
    with pytest.raises(ValueError, match="the parameters have no batch axis. Give the parameters a data axis, or drop total_size"):
        net().normal("z", 0.0, std=1.0, total_size=10)


# -- given values -----------------------------------------------------------------------------------------------------


def test_wrong_shape():
    message = r"node 'x' \(normal\): the value has shape \[2\], but the parameters give batch shape \[3\] and event shape \[\]: expected \[3\]"
    with pytest.raises(ValueError, match=message):
        net({"x": torch.zeros(2)}).normal("x", torch.zeros(3), std=1.0)
    with pytest.raises(ValueError, match=r"one event of the node has shape \[3\] and comes last: expected \[4, 3\]"):
        net({"x": torch.zeros(4, 2)}).onehot_categorical("x", torch.zeros(4, 3))


def test_wrong_dtype():
    value = torch.tensor([0.5, 0.1], dtype=torch.float64)
    message = r"node 'x' \(normal\): the value has dtype float64 and the node float32, and 0.1 at index \[1\] has no exact"
    with pytest.raises(TypeError, match=message):
        net({"x": value}).normal("x", torch.zeros(2, dtype=torch.float32), std=1.0)
    exact = net({"x": torch.tensor([0.5, 3.0])}).normal("x", torch.zeros(2, dtype=torch.float32), std=1.0)
    assert exact.dtype == torch.float32
    with pytest.raises(TypeError, match="the value given for node 'x' must be a tensor, a number or an array, but got str"):
        net({"x": "one"}).normal("x", torch.zeros(2), std=1.0)


def test_wrong_device():
    with pytest.raises(ValueError, match=r"node 'x' \(normal\): the value is on meta, but the node's parameters are on cpu"):
        net({"x": torch.zeros(3, device="meta")}).normal("x", torch.zeros(3), std=1.0)
    with pytest.raises(ValueError, match=r"on different devices: mean on cpu, std on meta"):
        net().normal("x", torch.zeros(3), std=torch.ones(3, device="meta"))


def test_a_value_that_is_none():
    with pytest.raises(ValueError, match="the value given for 'x' is None; leave the key out"):
        vae().observe(x=None)


def test_grey_pixels_given_to_a_bernoulli():
    image = torch.tensor([0.0, 0.25, 1.0])
    message = r"the value given for node 'x' \(bernoulli\) must be 0 or 1, but it is 0.25 at index \[1\].*torch.bernoulli"
    with pytest.raises(ValueError, match=message):
        net({"x": image}).bernoulli("x", torch.zeros(3))
    with pytest.raises(ValueError, match=r"it is 255 at index \[0\].*divide"):
        net({"x": torch.tensor([255, 0, 3], dtype=torch.uint8)}).bernoulli("x", torch.zeros(3))


@pytest.mark.parametrize(
    ("method", "parameters", "value", "message"),
    [
        ("gamma", {"alpha": 1.0, "beta": 1.0}, -0.5, "must be positive|at least 0"),
        ("poisson", {"rate": 1.0}, 1.5, "must be a non-negative integer"),
        ("uniform", {"minval": 0.0, "maxval": 1.0}, 1.5, "must be between 0 and 1"),
        ("categorical", {"logits": torch.zeros(3)}, 3.0, "must be an integer from 0 to 2"),
        ("dirichlet", {"alpha": torch.ones(3)}, torch.tensor([0.5, 0.5, 0.5]), "sum to 1"),
        ("beta", {"alpha": 1.0, "beta": 2.0}, 1.5, "between 0 and 1"),
        ("normal", {"mean": 0.0, "std": 1.0}, float("nan"), "real number"),
    ],
)
def test_value_off_the_support(method, parameters, value, message):
    given = torch.as_tensor(value, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"node 'x' \({method}\).*({message})"):
        getattr(net({"x": given}), method)("x", **parameters)


# -- shapes that do not fit in the log joint --------------------------------------------------------------------------


def test_a_scalar_prior_beside_a_likelihood_of_n_data():
    bn = net({"y": torch.zeros(5)})
    w = bn.normal("w", 0.0, std=1.0)
    bn.normal("y", w.expand(5), std=1.0)
    with pytest.raises(ValueError) as error:
        bn.log_joint()
    text = str(error.value)
    assert "node 'w' (normal) has sample [], batch [], event []" in text
    assert "node 'y' (normal) has sample [], batch [5], event []" in text
    assert "group_ndims=1 on 'y'" in text


def test_two_different_batch_shapes():
    bn = net()
    bn.normal("a", torch.zeros(3), std=1.0)
    bn.normal("b", torch.zeros(4), std=1.0)
    with pytest.raises(ValueError, match=r"'a' \(normal\) has sample \[\], batch \[3\].*'b' \(normal\) has sample \[\], batch \[4\]"):
        bn.log_joint()


def test_samples_and_data_are_told_apart():
    bn = net({"y": torch.zeros(5)})
    w = bn.normal("w", 0.0, std=1.0, n_samples=3)
    bn.normal("y", w.unsqueeze(-1).expand(3, 5), std=1.0)
    with pytest.raises(ValueError, match=r"'w' \(normal\) has sample \[3\], batch \[\].*'y' \(normal\) has sample \[3\], batch \[5\]"):
        bn.log_joint()


def test_nodes_without_samples_count_once_in_every_sample():
    bn = net({"b": torch.zeros(4)})
    bn.normal("a", torch.zeros(4), std=1.0, n_samples=3)
    bn.normal("b", torch.zeros(4), std=1.0)
    log_pa, log_pb = bn.cond_log_prob(["a", "b"])
    np.testing.assert_allclose(bn.log_joint(), log_pa + log_pb)


def test_two_sample_shapes():
    bn = net()
    bn.normal("a", torch.zeros(4), std=1.0, n_samples=3)
    bn.normal("b", torch.zeros(4), std=1.0, n_samples=2)
    with pytest.raises(ValueError, match=r"two sample shapes: node 'a' has \[3\] and node 'b' has \[2\].*the same n_samples"):
        bn.log_joint()


def test_n_samples_declared_twice_along_a_path():
    bn = net()
    a = bn.normal("a", torch.zeros(4), std=1.0, n_samples=3)
    bn.normal("b", a, std=1.0, n_samples=3)
    with pytest.raises(ValueError, match="declares n_samples although its parameters already carry the sample axis"):
        bn.log_joint()


@pytest.mark.parametrize(("batch", "value"), [((), (7,)), ((5, 1), (5,)), ((1,), (7,))])
def test_a_given_value_longer_than_its_distribution(batch, value):
    bn = net({"y": torch.zeros(value)})
    bn.normal("y", torch.zeros(batch), std=1.0)
    assert bn.cond_log_prob("y").numel() > torch.zeros(batch).numel()
    with pytest.raises(ValueError, match=r"could be data or samples.*give the parameters a data axis.*n_samples="):
        bn.log_joint()


def test_a_given_value_with_a_declared_sample_axis():
    bn = net({"y": torch.zeros(7)})
    bn.normal("y", 0.0, std=1.0, n_samples=7)
    assert bn.log_joint().shape == (7,)


def test_an_empty_net():
    with pytest.raises(ValueError, match="has no stochastic node that its log joint could sum over"):
        net().log_joint()


def test_model_and_variational_shapes_that_do_not_fit():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4, 2), std=1.0)
        bn.normal("x", z, std=1.0)
        return bn

    with pytest.raises(ValueError, match=r"model's log joint has shape \[4, 2\] and the variational net's \[4\].*group"):
        zsp.elbo(model(), {"x": torch.zeros(4, 2)}, variational=variational())


def test_an_axis_that_is_no_sample_axis():
    with pytest.raises(ValueError, match="axis=0 is to reduce sample axes, but the variational net declares none"):
        zsp.elbo(vae(), {"x": torch.zeros(4, 3)}, variational=variational(), axis=0)


# -- variables --------------------------------------------------------------------------------------------------------


def model_with_variable(reuse_variables=True):
    @zsp.meta_bayesian_net(scope="gen", reuse_variables=reuse_variables)
    def model(x):
        bn = zsp.BayesianNet()
        bn.normal("y", zsp.module("linear", nn.Linear, 2, 1)(x), std=1.0)
        if x.shape[0] > 5:
            zsp.parameter("extra", 0.0)
        return bn

    return model(torch.zeros(3, 2))


def test_a_variable_without_reuse_variables():
    with pytest.raises(RuntimeError, match="this net was decorated with reuse_variables=False"):
        model_with_variable(reuse_variables=False).observe()


def test_a_variable_outside_a_decorated_function():
    with pytest.raises(RuntimeError, match="works only inside a function decorated with"):
        zsp.module("linear", nn.Linear, 2, 1)
    with pytest.raises(RuntimeError, match="works only inside a function decorated with"):
        zsp.parameter("scale", 1.0)


def test_a_variable_inside_a_transform():
    model = model_with_variable()
    with pytest.raises(RuntimeError, match=r"'linear' of 'gen' would be created inside a torch.func transform.*materialize"):
        torch.func.vmap(lambda y: model({"y": y}).sum())(torch.zeros(2, 3, 1))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inside torch.inference_mode.*net.materialize"):
        model.observe()
    model.materialize()
    assert torch.func.vmap(lambda y: model({"y": y}).sum())(torch.zeros(2, 3, 1)).shape == (2,)


def test_parameters_before_the_first_execution():
    model = model_with_variable()
    with pytest.raises(RuntimeError, match="would silently train a part. Execute it first: model.materialize"):
        torch.optim.Adam(model.parameters())
    with pytest.raises(RuntimeError, match="would silently train a part"):
        list(nn.ModuleList([model]).parameters())
    assert len(list(model.materialize().parameters())) == 2


def test_a_variable_that_the_optimizer_has_not_seen():
    model = model_with_variable().materialize()
    torch.optim.Adam(model.parameters())
    with pytest.raises(RuntimeError, match="'extra' of 'gen' would be created after the net's parameters were handed out"):
        model.observe(x=torch.zeros(6, 2))
    model.materialize(x=torch.zeros(6, 2))
    assert len(list(model.parameters())) == 3


def test_a_function_with_variables_is_complete_before_it_is_saved():
    @zsp.reuse_variables("q")
    def q(x):
        return zsp.module("linear", nn.Linear, 2, 1)(x)

    with pytest.raises(RuntimeError, match=r"Execute it first: q.materialize\(x\)"):
        q.state_dict()
    with pytest.raises(RuntimeError, match=r"Execute it first: q.materialize\(x\)"):
        q.parameters().__next__()
    assert len(q.materialize(torch.zeros(1, 2)).state_dict()) == 2


def test_names_that_variables_cannot_have():
    for name in ("a.b", "train", ""):

        @zsp.reuse_variables("q")
        def q(name):
            zsp.parameter(name, 0.0)

        with pytest.raises(ValueError, match="a variable of 'q' cannot be named"):
            q(name)


# -- not finite -------------------------------------------------------------------------------------------------------


def breaking_loss(break_at):
    """A loss whose model gets a negative scale at one step."""
    steps = {"n": 0}

    @zsp.meta_bayesian_net(scope="breaking")
    def model(scale):
        bn = zsp.BayesianNet()
        bn.normal("noise", torch.zeros(3), std=1.0, group_ndims=1)
        bn.normal("y", torch.zeros(3), std=scale, group_ndims=1)
        return bn

    bound = model(torch.ones(3))
    weight = nn.Parameter(torch.zeros(3))

    def loss(batch):
        scale = weight.exp()
        if steps["n"] >= break_at:
            scale = scale * torch.tensor([1.0, -1.0, 1.0])
        steps["n"] += 1
        return -bound.observe(scale=scale, y=batch["y"][0]).log_joint()

    return loss, weight


def test_a_negative_scale_at_step_500_is_found_by_replay():
    loss, weight = breaking_loss(break_at=500)
    before = {"value": None}

    def watched(batch):
        before["value"] = weight.detach().clone()
        return loss(batch)

    with pytest.raises(ValueError, match=r"node 'y' \(normal\): std must be positive, but it is -") as error:
        zsp.fit(
            watched, {"y": torch.zeros(1000, 3)}, optimizer=torch.optim.SGD([weight], 1e-3), batch_size=1, progress=False
        )
    assert "the loss at step 500 of epoch 0 is nan" in str(error.value)
    assert "at index [1]" in str(error.value)
    assert torch.equal(weight, before["value"])


def test_the_replay_uses_the_same_random_numbers():
    @zsp.meta_bayesian_net()
    def model(weight):
        bn = zsp.BayesianNet()
        u = bn.uniform("u", torch.zeros(3), 1.0, group_ndims=1)
        bn.normal("y", torch.zeros(3), std=weight * (u - 0.01), group_ndims=1)
        return bn

    weight = nn.Parameter(torch.ones(()))
    bound = model(weight)
    with pytest.raises(ValueError, match=r"the loss at step [1-9]\d* of epoch 0 is nan: node 'y' \(normal\): std must be positive"):
        zsp.fit(
            lambda batch: -bound({"y": batch["y"][0]}),
            {"y": torch.zeros(2000, 3)},
            optimizer=torch.optim.SGD([weight], 0.0),
            batch_size=1,
            progress=False,
        )


def test_a_loss_that_is_not_finite_for_another_reason():
    weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match="is inf, but every node of its nets has a finite log probability"):
        zsp.fit(
            lambda batch: weight + float("inf"), {"y": torch.zeros(4)}, optimizer=torch.optim.SGD([weight], 0.1), progress=False
        )


def test_an_update_that_breaks_the_parameters_is_named():
    weight = nn.Parameter(torch.ones(()))

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.normal("y", weight, std=1.0)
        return bn

    bound = model()

    def loss(batch):
        return -bound.observe(y=batch["y"][0]).log_joint() + (weight - 1.0).abs().sqrt()

    with pytest.raises(ValueError, match="1 of the optimizer's parameters are not finite already before this step"):
        zsp.fit(loss, {"y": torch.zeros(4)}, optimizer=torch.optim.SGD([weight], 0.1), batch_size=1, progress=False)


def test_diagnose_names_the_node_in_a_loop_of_the_users_own():
    @zsp.meta_bayesian_net()
    def model(scale):
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(4, 2), std=1.0, group_ndims=1)
        bn.normal("x", torch.zeros(4, 2), std=scale, group_ndims=1)
        return bn

    bound = model(torch.ones(2))
    values = {"x": torch.zeros(4, 2), "scale": torch.ones(2)}
    good = zsp.elbo(bound, values, variational=variational())
    zsp.diagnose(good)
    bad = zsp.elbo(bound, {**values, "scale": torch.tensor([1.0, -1.0])}, variational=good.variational)
    assert not bad.isfinite().all()
    with pytest.raises(ValueError, match=r"node 'x' \(normal\): std must be positive, but it is -1 at index \[1\]"):
        zsp.diagnose(bad)
    with pytest.raises(ValueError, match="node 'x'"):
        zsp.diagnose(bad.bn)


def test_checked_looks_at_every_execution():
    bound = vae()
    x = torch.zeros(4, 3)
    bound({"z": torch.zeros(4, 2), "x": x})
    x = x + 0.5
    bound({"z": torch.zeros(4, 2), "x": x})  # same shapes: not looked at
    with zsp.checked(), pytest.raises(ValueError, match="must be 0 or 1"):
        bound({"z": torch.zeros(4, 2), "x": x})


def test_fit_checks_again_every_epoch():
    bound = vae(n=1)
    x = torch.zeros(20, 3)
    weight = nn.Parameter(torch.zeros(()))

    def loss(batch):
        if epochs:
            batch = {"x": batch["x"] + 0.5}
        return -bound({"z": torch.zeros(1, 2), **batch}).mean() + weight

    epochs = []
    with pytest.raises(ValueError, match="must be 0 or 1"):
        zsp.fit(
            loss, {"x": x}, optimizer=torch.optim.SGD([weight], 0.1), epochs=3, batch_size=1, progress=False,
            validation=lambda: epochs.append(1) or {},
        )  # fmt: skip
    assert epochs == [1]


# -- densities and draws that do not exist ----------------------------------------------------------------------------


def test_a_sampler_only_distribution_asked_for_its_density():
    bn = net()
    bn.implicit("x", torch.randn(3))
    with pytest.raises(NotImplementedError, match="implicit"):
        bn.log_joint()


def test_a_density_only_distribution_asked_for_a_draw():
    x = net().flat("x", shape=(2,))
    with pytest.raises(NotImplementedError, match=r"node 'x' \(flat\) is not observed.*Observe it: observe\(x=...\)"):
        x + 1


def test_sgvb_of_a_node_that_is_not_reparameterised():
    logits = nn.Parameter(torch.zeros(4, 2))

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(4, 2), group_ndims=1)
        bn.normal("x", z, std=1.0, group_ndims=1)
        return bn

    q = net()
    q.bernoulli("z", logits, group_ndims=1)
    bound = zsp.elbo(model(), {"x": torch.zeros(4, 2)}, variational=q)
    with pytest.raises(ValueError, match=r"node 'z' \(bernoulli\) is not reparameterised.*silently wrong"):
        bound.sgvb()
