import math

import numpy as np
import pytest
import torch

from factory.recipe import Head
from factory.recognition.margins import NEAR_ONE, Margin, adaface, arcface, cosface

ANGLES = np.linspace(0.05, 2.6, 40)


def column(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_cosface_is_the_cosine_less_the_margin():
    assert cosface(column(np.cos(ANGLES)), 0.4).numpy()[:, 0] == pytest.approx(np.cos(ANGLES) - 0.4)


def test_arcface_moves_the_angle():
    moved = arcface(column(np.cos(ANGLES)), 0.5).numpy()[:, 0]
    assert moved == pytest.approx(np.cos(ANGLES + 0.5), abs=1e-9)


def test_arcface_keeps_falling_past_pi():
    angles = np.linspace(0.1, math.pi - 0.001, 400)
    moved = arcface(column(np.cos(angles)), 0.5).numpy()[:, 0]
    inside = angles + 0.5 < math.pi
    assert (np.diff(moved[inside]) < 0).all()
    assert (np.diff(moved[~inside]) < 0).all()
    assert moved[~inside] == pytest.approx(np.cos(angles[~inside]) - 0.5 * math.sin(0.5))


@pytest.mark.parametrize("quality", [-1.0, -0.3, 0.0, 1.0])
def test_adaface_closed_form(quality):
    q = torch.full((len(ANGLES), 1), quality, dtype=torch.float64)
    moved = adaface(column(np.cos(ANGLES)), 0.4, q).numpy()[:, 0]
    angle = np.clip(ANGLES - 0.4 * quality, NEAR_ONE, math.pi - NEAR_ONE)
    assert moved == pytest.approx(np.cos(angle) - 0.4 * quality - 0.4, abs=1e-9)


def test_adaface_corners_are_arcface_and_cosface():
    cosines = column(np.cos(ANGLES))
    ones = torch.ones_like(cosines)
    assert torch.allclose(adaface(cosines, 0.4, -ones), arcface(cosines, 0.4))
    assert torch.allclose(adaface(cosines, 0.4, 0 * ones), cosface(cosines, 0.4), atol=1e-7)


@pytest.mark.parametrize("name", ["cosface", "arcface", "adaface"])
def test_only_the_own_class_pays_and_all_are_scaled(name):
    torch.manual_seed(0)
    head, centres = Margin(Head(name=name, scale=32.0, margin=0.3)), torch.randn(6, 8)
    embeddings, labels = torch.randn(5, 8) * 20, torch.tensor([0, 5, 2, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(embeddings.bfloat16(), centres, labels)
    assert logits.dtype == torch.float32
    rounded = embeddings.bfloat16().double()
    unit = rounded / rounded.norm(dim=1, keepdim=True)
    directions = centres.double() / centres.double().norm(dim=1, keepdim=True)
    plain = 32.0 * unit @ directions.T
    own = torch.nn.functional.one_hot(labels, 6).bool()
    assert torch.allclose(logits.double()[~own], plain[~own], atol=1e-4)
    assert (logits.double()[own] < plain[own]).all()


@pytest.mark.parametrize("name", ["cosface", "arcface", "adaface"])
def test_gradients_are_finite_at_the_poles(name):
    head = Margin(Head(name=name, scale=64.0, margin=0.5))
    centres = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    embeddings = torch.tensor([[2.0, 0, 0, 0], [2.0, 0, 0, 0]], requires_grad=True)
    logits = head(embeddings, centres, torch.tensor([0, 1]))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


def test_adaface_reads_quality_from_the_norm():
    head = Margin(Head(name="adaface", scale=1.0, margin=0.4)).train()
    centres = torch.tensor([[0.5, math.sqrt(0.75), 0, 0], [0, 0, 1.0, 0]])
    for _ in range(600):
        head(torch.randn(64, 4) * 5 + 10, centres, torch.zeros(64, dtype=torch.int64))
    head.eval()
    own = torch.tensor([[1.0, 0, 0, 0]])
    easy = head(own * 60, centres, torch.tensor([0]))[0, 0]
    hard = head(own * 1, centres, torch.tensor([0]))[0, 0]
    assert easy != hard


@pytest.mark.parametrize("name", ["cosface", "arcface", "adaface"])
def test_a_class_that_is_not_there_costs_no_margin(name):
    head, centres = Margin(Head(name=name, scale=8.0, margin=0.3)).eval(), torch.randn(6, 8)
    embeddings = torch.randn(3, 8)
    logits = head(embeddings, centres, torch.tensor([2, -1, 5]))
    normalize = torch.nn.functional.normalize
    plain = 8.0 * normalize(embeddings) @ normalize(centres).T
    assert torch.allclose(logits[1], plain[1], atol=1e-5)
    assert logits[0, 2] < plain[0, 2] and logits[2, 5] < plain[2, 5]
