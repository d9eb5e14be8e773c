"""Every objective and estimator in compiled training against eager training."""

import numpy as np
import pytest
import torch
from torch import nn

import zsp
from tests.inference.training.graphs import interpreted  # noqa: F401
from tests.inference.variational import test_compiled_estimators as estimators
from zsp.inference.training import trainer

assert {"leave-one-out", "moving mean", "neural baseline", "vimco", "dreg", "wake-sleep"} <= set(estimators.CASES)


def run(case, compile):
    """A few steps of SGD on all parameters of the two nets."""
    estimators.start()
    parameters = nn.ParameterList(value.detach().clone() for value in estimators.copies(4).values())
    loss = estimators.loss_of(case)
    loss(*parameters)  # both nets are checked, and their dependencies followed, the first time
    estimators.start()
    history = zsp.fit(
        lambda batch: batch["weight"].mean() * loss(*parameters),
        {"weight": torch.linspace(0.5, 1.5, 16)},
        optimizer=torch.optim.SGD(parameters, 1e-3),
        batch_size=2,
        progress=False,
        compile=compile,
    )
    return history, [p.detach() for p in parameters], estimators.MOVING_MEAN.mean.clone()


@pytest.mark.parametrize("case", estimators.CASES)
def test_compiled_equals_eager(interpreted, monkeypatch, case):
    monkeypatch.setattr(trainer, "steps_per_call", lambda traced, n_steps: 1)
    history, parameters, moving_mean = run(case, compile=False)
    compiled, found, found_mean = run(case, compile=True)
    assert compiled.n_compiled_steps == 7
    for a, b in zip([*parameters, moving_mean], [*found, found_mean], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(history["loss"], compiled["loss"], rtol=1e-10)
