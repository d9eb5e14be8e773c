"""Functional updates against torch's optimizers, bit for bit, and as tensors in compiled code up to rounding."""

import copy
import itertools

import pytest
import torch
from torch import nn

from zsp.inference.training.updates import update_of

SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.3, "maximize": True},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01},
    {"lr": torch.tensor(0.1), "momentum": 0.7, "nesterov": True},
    {"lr": 0.1, "momentum": 0.7, "foreach": True},
]
ADAM = [
    dict(zip(("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"), row, strict=True))
    for row in [
        (1e-3, (0.9, 0.999), 1e-8, 0.0, False, False),
        (3e-2, (0.5, 0.9), 1e-4, 0.1, True, False),
        (3e-2, (0.95, 0.99), 1e-8, 0.3, False, True),
        (1e-2, (0.9, 0.999), 1e-8, 0.0, True, True),
    ]
]
CASES = [
    *((torch.optim.SGD, options) for options in SGD),
    *itertools.product([torch.optim.Adam, torch.optim.AdamW], ADAM),
    (torch.optim.AdamW, {"lr": torch.tensor(0.02, dtype=torch.float32), "weight_decay": 0.1}),
]
N_STEPS = 30


def gradients(dtype):
    """Of all sizes, some of them zero."""
    generator = torch.Generator().manual_seed(1)
    made = (
        torch.randn(N_STEPS, 7, 11, generator=generator, dtype=torch.float64).to(dtype)
        * 10.0 ** torch.arange(-5, 2)[:, None]
    )
    return made.where(torch.arange(11) != 3, 0).to(dtype)


def run_torch(kind, options, dtype, start, given):
    parameter = nn.Parameter(start.clone())
    optimizer = kind([parameter], **options)
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer


def run_ours(kind, options, dtype, start, given, convert):
    """The first step is torch's, which makes the state, the others ours."""
    parameter, optimizer = run_torch(kind, options, dtype, start, given[:1])
    update = update_of(optimizer)
    (group,) = optimizer.param_groups
    (state,) = optimizer.state.values() if optimizer.state else ({},)
    names = update.state_names(group)
    values = tuple(state[name].clone() for name in names)
    for i, gradient in enumerate(given[1:]):
        coefficients = [convert(number) for number in update.coefficients(group, i + 2)]
        values = update.new_state(group, parameter, gradient, values, tuple(coefficients))
        parameter = update.new_parameter(group, parameter, gradient, values, tuple(coefficients))
    return parameter, dict(zip(names, values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind, options", CASES)
def test_equal_bit_for_bit(kind, options, dtype):
    start, given = torch.linspace(-1, 1, 77, dtype=dtype).reshape(7, 11), gradients(dtype)
    expected, optimizer = run_torch(kind, options, dtype, start, given)
    (expected_state,) = optimizer.state.values() if optimizer.state else ({},)
    found, state = run_ours(kind, options, dtype, start, given, convert=lambda number: number)
    assert torch.equal(found, expected) and not torch.equal(found, start)
    for name, value in state.items():
        assert torch.equal(value, expected_state[name]), name


@pytest.mark.parametrize("kind, options", CASES)
def test_coefficients_may_be_tensors(kind, options):
    start, given = torch.linspace(-1, 1, 77).reshape(7, 11), gradients(torch.float64)
    expected, _ = run_torch(kind, options, torch.float64, start, given)
    found, _ = run_ours(kind, options, torch.float64, start, given, convert=torch.tensor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class OtherSGD(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda p: torch.optim.RMSprop(p), "the optimizer is RMSprop; compiled updates are there for SGD, Adam, AdamW"),
        (lambda p: OtherSGD(p, 0.1), "the optimizer is OtherSGD"),
        (lambda p: torch.optim.Adam(p, capturable=True), "option capturable=True has no compiled update"),
        (lambda p: torch.optim.SGD(p, 0.1, differentiable=True), "option differentiable=True"),
    ],
)
def test_what_is_not_supported_is_refused(make, reason):
    assert reason in update_of(make([nn.Parameter(torch.zeros(2))]))


def test_hooks_are_refused():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], 0.1)
    assert not isinstance(update_of(optimizer), str)
    optimizer.register_step_pre_hook(lambda *_: None)
    assert "the optimizer has hooks" in update_of(optimizer)
    optimizer = torch.optim.SGD([parameter], 0.1)
    parameter.register_post_accumulate_grad_hook(lambda _: None)
    assert "a parameter has a hook" in update_of(optimizer)


def test_every_group_has_its_own_options():
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    update = update_of(optimizer)
    assert [update.coefficients(group, 1)[0] for group in copy.copy(optimizer.param_groups)] == [-0.1, -0.5]
