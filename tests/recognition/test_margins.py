import math

import numpy as np
import pytest
import torch

from factory.recipe import Head
from factory.recognition.margins import NEAR_ONE, MarginHead, adaface, arcface, cosface

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
    head = MarginHead(Head(name=name, scale=32.0, margin=0.3), 6, 8)
    embeddings, labels = torch.randn(5, 8) * 20, torch.tensor([0, 5, 2, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(embeddings.bfloat16(), labels)
    assert logits.dtype == torch.float32
    rounded = embeddings.bfloat16().double()
    unit = rounded / rounded.norm(dim=1, keepdim=True)
    centres = head.centres.detach().double()
    plain = 32.0 * unit @ (centres / centres.norm(dim=1, keepdim=True)).T
    own = torch.nn.functional.one_hot(labels, 6).bool()
    assert torch.allclose(logits.double()[~own], plain[~own], atol=1e-4)
    assert (logits.double()[own] < plain[own]).all()


@pytest.mark.parametrize("name", ["cosface", "arcface", "adaface"])
def test_gradients_are_finite_at_the_poles(name):
    head = MarginHead(Head(name=name, scale=64.0, margin=0.5), 2, 4)
    with torch.no_grad():
        head.centres[0] = torch.tensor([1.0, 0, 0, 0])
        head.centres[1] = torch.tensor([-1.0, 0, 0, 0])
    embeddings = torch.tensor([[2.0, 0, 0, 0], [2.0, 0, 0, 0]], requires_grad=True)
    logits = head(embeddings, torch.tensor([0, 1]))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


def test_adaface_reads_quality_from_the_norm():
    head = MarginHead(Head(name="adaface", scale=1.0, margin=0.4), 2, 4).train()
    for _ in range(600):
        head(torch.randn(64, 4) * 5 + 10, torch.zeros(64, dtype=torch.int64))
    head.eval()
    own = torch.tensor([[1.0, 0, 0, 0]])
    with torch.no_grad():
        head.centres[0] = torch.tensor([0.5, math.sqrt(0.75), 0, 0])
    easy = head(own * 60, torch.tensor([0]))[0, 0]
    hard = head(own * 1, torch.tensor([0]))[0, 0]
    assert easy != hard
