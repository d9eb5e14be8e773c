"""Distilling a posterior predictive: the student's optimum is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zsp
from zsp import models


class Logits(nn.Module):
    """A student without inputs: the same logits for all data."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.logits.expand(len(x), 3)


def teachers() -> zsp.MetaBayesianNet:
    return models.bayesian(nn.Linear(2, 3), likelihood=models.CategoricalLikelihood())


def test_the_student_becomes_the_mixture_of_the_teachers():
    latents = {"weight": torch.zeros(2, 3, 2), "bias": torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]).log()}
    student = Logits()
    optimizer = torch.optim.SGD(student.parameters(), lr=2.0)
    distil = models.DarkKnowledge(
        teachers(),
        student,
        likelihood=models.CategoricalLikelihood(),
        inputs=lambda: torch.zeros(500, 2),
        optimizer=optimizer,
    )
    averaged = []
    for step in range(50):
        cost = distil(latents)["cost"]
        if step >= 20:
            averaged.append(student.logits.softmax(-1).detach().clone())
    assert distil.n_steps == 50 and cost.shape == (2,)
    found = torch.stack(averaged).mean(0)
    # the noise of 30 x 1000 labels, which the steps make dependent over about five: an s.e. of 0.006
    torch.testing.assert_close(found, torch.tensor([0.5, 0.15, 0.35]), atol=0.02, rtol=0)


def test_a_gradient_step_is_that_of_the_teachers_labels():
    """One teacher that is sure: its labels are known, and so is the student's gradient."""
    latents = {"weight": torch.zeros(1, 3, 2), "bias": torch.tensor([[0.0, 60.0, 0.0]])}
    student = Logits()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    distil = models.DarkKnowledge(
        teachers(),
        student,
        likelihood=models.CategoricalLikelihood(),
        inputs=lambda: torch.zeros(5, 2),
        optimizer=optimizer,
    )
    cost = distil(latents)["cost"]
    torch.testing.assert_close(cost, torch.tensor([3.0]).log())
    torch.testing.assert_close(student.logits.detach(), torch.tensor([-1 / 3, 2 / 3, -1 / 3]))


def test_mistakes():
    student = Logits()
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(
        ValueError, match="does not have the student's parameter 'logits': make it of student.parameters"
    ):
        models.DarkKnowledge(
            teachers(), student, likelihood=models.CategoricalLikelihood(), inputs=list, optimizer=other
        )
    with pytest.raises(TypeError, match="model must be a MetaBayesianNet, but got Linear"):
        models.DarkKnowledge(
            nn.Linear(1, 1), student, likelihood=models.CategoricalLikelihood(), inputs=list, optimizer=other
        )
