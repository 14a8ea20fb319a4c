"""What the official configurations train differently: each against a closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from together import CPU, steps, together
from torch import nn
from undecayed import held_still, normed, run_undecayed, undecayed

from factory.diffusion.dcface import ConditionsConfig, DCFaceConfig, DCFaceNet
from factory.recipe import FRRecipe, Head, InputError, Schedule, digest, load
from factory.recognition.margins import Margin, arcface, straight_through
from factory.systems.dcface import DCFaceOptions
from factory.systems.inliers import nearest, trimmed
from factory.training.engines import make_engine, trained
from factory.training.schedules import learning_rate

RECIPES = Path(__file__).parents[2] / "jobs/recipes"


def test_straight_through_has_arcfaces_values_and_the_cosines_gradient() -> None:
    angles = torch.linspace(0.05, np.pi - 0.55, 40, dtype=torch.float64)
    cosines = torch.cos(angles).requires_grad_()
    made = straight_through(cosines, 0.5)
    torch.testing.assert_close(made, torch.cos(angles + 0.5))
    torch.testing.assert_close(made, arcface(cosines, 0.5))
    (gradient,) = torch.autograd.grad(made.sum(), cosines)
    assert (gradient == 1.0).all()
    (derivative,) = torch.autograd.grad(arcface(cosines, 0.5).sum(), cosines)
    torch.testing.assert_close(derivative, torch.sin(angles + 0.5) / torch.sin(angles))


def gradients(name: str, embeddings: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    head = Margin(Head(name=name, scale=64.0, margin=0.5))  # type: ignore[arg-type]
    given = embeddings.clone().requires_grad_()
    labels = torch.arange(len(embeddings)) % len(centres)
    nn.functional.cross_entropy(head(given, centres, labels), labels).backward()
    assert given.grad is not None
    return given.grad


def test_a_heads_gradient_is_that_of_its_softmax_through_the_cosine() -> None:
    """By the chain rule: s (softmax - onehot) times the cosines' own derivative."""
    draws = torch.Generator().manual_seed(1)
    embeddings, centres = (torch.randn(n, 32, generator=draws) for n in (16, 8))
    found = gradients("arcface_straight_through", embeddings, centres)
    unit = nn.functional.normalize(embeddings).double()
    directions = nn.functional.normalize(centres).double()
    cosines, labels = unit @ directions.T, torch.arange(16) % 8
    rows = torch.arange(16)
    logits = cosines.clone()
    logits[rows, labels] = torch.cos(torch.acos(cosines[rows, labels]) + 0.5)
    weights = torch.softmax(64.0 * logits, 1)
    weights[rows, labels] -= 1.0
    by_unit = 64.0 * weights @ directions / 16
    across = by_unit - (by_unit * unit).sum(1, keepdim=True) * unit
    expected = across / embeddings.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)
    derivative = gradients("arcface", embeddings, centres)
    apart = float((found - derivative).norm() / derivative.norm())
    assert 0.05 < apart < 0.2  # near right angles sin(theta + m) / sin(theta) is about cos(m)


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_straight_through_is_finite_at_the_poles_and_past_pi(cosine: float) -> None:
    given = torch.tensor([cosine, -0.95], requires_grad=True)
    made = straight_through(given, 0.5)
    made.sum().backward()
    assert made.tolist() == pytest.approx([np.cos(np.arccos(x) + 0.5) for x in (cosine, -0.95)])
    assert given.grad is not None and (given.grad == 1.0).all()


@pytest.mark.parametrize(("power", "final"), [(1.0, 0.0), (2.0, 0.0), (3.0, 0.25)])
def test_polynomial_falls_as_a_power_of_what_is_left(power: float, final: float) -> None:
    shape = Schedule(
        name="polynomial", steps=100, batch_size=2, warmup=0.1, power=power, final_lr=final
    )
    rates = [learning_rate(0.4, shape, step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.4 * (step + 1) / 10 for step in range(10)])
    left = [(100 - step) / 90 for step in range(10, 100)]
    assert rates[10:] == pytest.approx([0.4 * (final + (1 - final) * x**power) for x in left])
    assert learning_rate(0.4, shape, 100, 100, 10) == pytest.approx(0.4 * final)


@pytest.mark.parametrize("name", ["arcface_torch", "dcface", "idiff_face", "cemiface"])
def test_a_field_at_its_default_alters_no_digest(name: str) -> None:
    recipe = load(RECIPES / f"paper/fr/{name}.yaml", kind="fr")
    assert isinstance(recipe, FRRecipe)
    stated = recipe.model_dump(mode="json")
    assert "decay_norms" not in stated["optimizer"] and "power" not in stated["schedule"]
    same = load(
        RECIPES / f"paper/fr/{name}.yaml", ["optimizer.decay_norms=true", "schedule.power=2"]
    )
    assert digest(same) == digest(recipe)
    for other in ("optimizer.decay_norms=false", "schedule.power=1"):
        assert digest(load(RECIPES / f"paper/fr/{name}.yaml", [other])) != digest(recipe)


def test_the_digests_of_the_papers_recipes_are_those_of_before() -> None:
    known = {
        "fr/arcface_torch": "36baf6d2a95e07aa",
        "fr/cemiface": "77b6c7313a1f4b50",
        "fr/dcface": "d46dfa3149d04ed9",
        "fr/idiff_face": "1cfa7e5a1f6b40f9",
        "train/dcface": "6fde48e6f6474dcd",
    }
    assert {name: digest(load(RECIPES / f"paper/{name}.yaml")) for name in known} == known


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batch_norms_are_not_decayed_and_all_else_is(optimizer: str) -> None:
    """With a loss of no gradient a step changes nothing but by decay."""
    network = normed()
    engine = make_engine(undecayed(optimizer, name="torch"), network, CPU)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    engine.step([torch.zeros(4, 6)], lambda x: 0.0 * engine.module(x).sum() + 1.0, 0.05)
    for name, value in network.named_parameters():
        kept = 1.0 if name.startswith("1.") else 1.0 - 0.05 * 0.1
        torch.testing.assert_close(value.detach(), kept * before[name])
    found = trained(network, undecayed(optimizer).optimizer)
    assert list(found.undecayed) == ["1.weight", "1.bias"]
    assert set(found.all) == set(before) and "2.weight" in found.decayed  # PReLU's slopes


@pytest.mark.slow
def test_divided_trainings_leave_the_same_norms_undecayed(tmp_path: Path) -> None:
    engine = make_engine(undecayed("adamw", name="torch"), normed(), CPU)
    engine.module.apply(held_still)
    losses, *_ = steps(engine, 0, 3)
    found = together(2, run_undecayed, tmp_path, (0, 1, 2, 3), 3)
    for stage, result in found[0].items():
        assert result["losses"] == pytest.approx(losses, rel=1e-4), stage
        for name, value in engine.state()["module"].items():
            torch.testing.assert_close(result["module"][name], value, atol=1e-4, rtol=1e-4)
        resumed = make_engine(undecayed("adamw", name="torch"), normed(), CPU, result)
        for number, kept in engine.state()["optimizer"]["state"].items():
            theirs = resumed.state()["optimizer"]["state"][number]
            torch.testing.assert_close(theirs["exp_avg"], kept["exp_avg"], atol=1e-4, rtol=1e-3)


class People:
    """The images of a training, by person."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.peers = labels, np.arange(len(labels))
        self.first = np.searchsorted(labels, np.arange(labels.max() + 2))

    def __len__(self) -> int:
        return len(self.labels)


def test_a_tenth_of_each_person_is_trimmed_where_that_is_asked() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 20, 40])
    cosines = draws.uniform(0.0, 0.1, 80) + 0.3 * labels  # the first person is far from everyone
    people: Any = People(labels)
    best = nearest(people, cosines, 4)
    each = trimmed(people, cosines, best, "person", seed=1)
    moved = np.flatnonzero(each != np.arange(80))
    lowest = [np.flatnonzero(labels == n)[np.argsort(cosines[labels == n])] for n in range(3)]
    assert set(moved) == {*lowest[0][:2], *lowest[1][:2], *lowest[2][:4]}
    assert (labels[each] == labels).all() and not set(each[moved]) & set(moved)
    assert [set(row) for row in best] == [set(rows[-4:]) for rows in lowest]
    whole = trimmed(people, cosines, best, "dataset", seed=1)
    moved = np.flatnonzero(whole != np.arange(80))
    assert set(moved) == set(lowest[0][:8])  # all of them the first person's
    assert DCFaceOptions().trim_within == "dataset"


def conditions(**fields: object) -> DCFaceConfig:
    sizes = {"identity_encoder": "r18", "embedding_size": 16, "identity_size": 32, "map_size": 2}
    return DCFaceConfig.model_validate({"conditions": {**sizes, **fields}})


def test_the_identity_encoder_drops_out_only_while_it_is_trained() -> None:
    with torch.device("meta"):
        rates = [
            DCFaceNet(conditions(**fields)).encoder.dropout.p  # type: ignore[union-attr]
            for fields in ({}, {"identity_dropout": 0.4})
        ]
    assert rates == [0.0, 0.4]
    assert "identity_dropout" not in ConditionsConfig().model_dump(mode="json")
    assert ConditionsConfig(identity_dropout=0.4).model_dump(mode="json")["identity_dropout"] == 0.4
    with pytest.raises(ValueError, match="identity_dropout"):
        ConditionsConfig(identity_dropout=1.0)


def test_an_unknown_head_names_the_accepted() -> None:
    with pytest.raises(InputError, match="'arcface_straight_through'"):
        load(RECIPES / "paper/fr/arcface_torch.yaml", ["head.name=arcface_torch"])
