"""ID3's formulas against independent computations, and the system on a few thousand weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faces import make_pool
from gpu import same_images, same_step
from students import FEW, SAMPLER, drawn, taught
from tiny import DIMENSION, IDIFF, SIZE, generating, located, save_frozen, training
from torch import Tensor, nn
from torch.nn import functional as F

from factory.diffusion.files import save_weights
from factory.diffusion.sampling import sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.diffusion.trainable import Place
from factory.diffusion.unet import UNet, UNetConfig
from factory.recipe import InputError, Sampler
from factory.recognition.attributes import STUDIO, AttributeNet, save_predictor
from factory.systems.base import Position
from factory.systems.id3 import (
    ID3,
    AdjustedScore,
    Histogram,
    ID3Training,
    adjusted,
    likelihood_weight,
)

NAMES = ("yaw", "age")
MODEL = IDIFF | {"context_size": DIMENSION + len(NAMES), "context_hidden": [16, 8]}
OPTIONS = {
    "process": {"prediction": "v_prediction"},
    "attributes": list(NAMES),
    "empty_context_prob": 0.1,
}
HISTOGRAMS = [
    {"name": "yaw", "edges": [-40.0, 0.0, 40.0], "counts": [1, 3], "divisor": 90.0},
    {"name": "age", "edges": [20.0, 30.0], "counts": [5], "divisor": 100.0},
]


def truth(identity: int, slot: int) -> dict[str, float]:
    return {"yaw": 10.0 * slot + identity + 0.25, "age": 30.0 + identity, "pitch": 1.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a denoiser that answers to its context, and of what it needs."""
    folder = tmp_path_factory.mktemp("weights")
    files = save_frozen(folder) | {"denoiser": folder / "denoiser.safetensors"}
    network = UNet(UNetConfig.model_validate(MODEL))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    config = {
        "system": "id3",
        "model": MODEL,
        "process": Process(prediction="v_prediction").model_dump(),
        "trained_with": {"autoencoder": "", "teacher": ""},
        "attributes": HISTOGRAMS,
    }
    save_weights(files["denoiser"], "denoiser", network, config, {})
    return files


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight people of three images each, with yaw and age."""
    folder = tmp_path_factory.mktemp("people") / "data"
    return make_pool(folder, 8, 3, size=SIZE, truth=truth)


def loaded(files: dict[str, Path], source: str = "anchors", **changes: Any) -> ID3:
    options = changes.pop("options", {"anchors": 6})
    system = ID3(generating("id3", files, source, options=options, **changes))
    system.load()
    return system


def test_the_weight_falls_from_a_quarter() -> None:
    found = likelihood_weight(torch.tensor([0.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(found, [0.25, 0.5 * (1 - 1 / (1 + np.exp(-1)))])
    assert found[1].item() == pytest.approx(0.134, abs=5e-4)


class Toy(nn.Module):
    """A denoiser that depends on x and t, and a recognizer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 3, padding=1).double()
        self.face = nn.Linear(2 * 3 * 3, 5).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.mix(x)) * (1 + t[:, None, None, None] / 1000)

    def look(self, clean: Tensor) -> Tensor:
        return F.normalize(torch.tanh(self.face(clean.flatten(1))), dim=1)


class Exact(Noising):
    """The closed forms in float64."""

    def signal(self, t: Tensor) -> Tensor:
        return self.kept[t].sqrt()[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.kept[t]).sqrt()[:, None, None, None]

    def gamma(self, t: Tensor) -> Tensor:
        return t.double() / 1000


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # so that differences resolve
    torch.manual_seed(0)
    return Toy()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", [30, 500, 930])
def test_the_adjusted_score_is_the_gradient_of_the_weighted_likeness(
    toy: Toy, prediction: Any, step: int
) -> None:
    noising = Exact(Process(prediction=prediction))
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    y = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1)
    t = torch.full((3,), step)
    strength, kept = 7.0, noising.kept[step]
    a, s = kept.sqrt(), (1 - kept).sqrt()
    w = 0.5 * (1 - 1 / (1 + np.exp(-step / 1000)))

    def noise_of(x: Tensor, made: Tensor) -> Tensor:
        return made if prediction == "epsilon" else s * x + a * made

    def likeness(x: Tensor) -> Tensor:
        clean = (x - s * noise_of(x, toy(x, t))) / a
        return w * (toy.look(clean) * y).sum(dim=1)

    gradient = torch.func.jacrev(likeness)(x)[torch.arange(3), torch.arange(3)]
    wanted = noise_of(x, toy(x, t)) - s * strength * gradient
    options = AdjustedScore(gradient="full", strength=strength)
    made = adjusted(toy, noising, toy.look, y, options)(x, t)
    torch.testing.assert_close(noise_of(x, made), wanted)
    # The same by differences: moving x along a direction changes the likeness as the gradient says.
    direction = torch.randn_like(x)
    change = (likeness(x + 1e-6 * direction) - likeness(x - 1e-6 * direction)) / 2e-6
    moved = noise_of(x, toy(x, t)) - noise_of(x, made)
    slope = (moved / (s * strength) * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close(slope, change, atol=1e-7, rtol=1e-4)

    eps = noise_of(x, toy(x, t)).detach()
    fixed = torch.func.jacrev(lambda x: w * (toy.look((x - s * eps) / a) * y).sum(dim=1))(x)
    correction = s * strength * fixed[torch.arange(3), torch.arange(3)]
    ratio = eps.flatten(1).norm(dim=1) / correction.flatten(1).norm(dim=1)
    wanted = eps - correction * ratio.clamp_max(1.0)[:, None, None, None]
    options = AdjustedScore(gradient="cheap", strength=strength)
    made = adjusted(toy, noising, toy.look, y, options)(x, t)
    torch.testing.assert_close(noise_of(x, made), wanted)


def test_the_score_is_left_alone_where_it_is_off(toy: Toy) -> None:
    noising, x, y = Exact(Process()), torch.randn(1, 2, 3, 3).double(), torch.ones(1, 5).double()
    for options in (
        AdjustedScore(gradient="off"),
        AdjustedScore(interval=(0.0, 0.4)),
        AdjustedScore(strength=0.0),
    ):
        made = adjusted(toy, noising, toy.look, y, options)(x, torch.tensor([500]))
        torch.testing.assert_close(made, toy(x, torch.tensor([500])))


@pytest.mark.parametrize("gradient", ["full", "cheap"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_adjusted_score_leads_towards_the_identity(gradient: Any, prediction: Any) -> None:
    """The data are standard normal, where the best prediction is known: eps-hat = sigma x."""
    process = Process(prediction=prediction)
    noising = Noising(process)
    y = F.normalize(torch.randn(8, 32, generator=torch.manual_seed(1)), dim=1)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return noising.sigma(t) * x if prediction == "epsilon" else 0 * x

    likeness = []
    for strength in (0.0, 5.0, 20.0):
        options = AdjustedScore(gradient=gradient, strength=strength, interval=(0.0, 0.9))
        steps = adjusted(predict, noising, lambda x: F.normalize(x.flatten(1), dim=1), y, options)
        sampler = Sampler(name="ddim", steps=20)
        made = sample_latents(steps, range(8), (2, 4, 4), process, sampler)
        likeness.append(float((F.normalize(made.flatten(1), dim=1) * y).sum(dim=1).mean()))
    assert likeness[0] < 0.2 and likeness[0] + 0.1 < likeness[1] < likeness[2]


def test_attributes_are_drawn_as_they_were_spread() -> None:
    held = Histogram(name="a", edges=(0.0, 10.0, 20.0, 30.0), counts=(2, 0, 6), divisor=1.0)
    drawn = np.array([held.draw(seed, 1.0) for seed in range(2000)])
    assert ((drawn < 10).mean(), ((drawn >= 10) & (drawn < 20)).sum()) == (
        pytest.approx(0.25, abs=0.03),
        0,
    )
    assert drawn[drawn > 20].mean() == pytest.approx(25, abs=0.3)
    assert {held.draw(seed, 0.0) for seed in range(5)} == {20.0}  # the mean of the bins
    halves = np.array([held.draw(seed, 0.5) for seed in range(2000)])
    np.testing.assert_allclose(halves - 20, (drawn - 20) / 2, atol=1e-9)


def test_contexts_lie_at_v_from_anchors_far_apart(files: dict[str, Path]) -> None:
    system = loaded(files, options={"anchors": 6, "bounds": [0.5, 0.7]})
    contexts = system.draw_contexts(range(6))
    closest = (contexts @ contexts.T)[np.triu_indices(6, 1)].max()
    assert closest <= -1 / 5 + 0.05  # Rankin's bound of six
    np.testing.assert_array_equal(system.draw_contexts([3, 9]), contexts[[3, 3]])
    places = [Position(identity, slot, 0) for identity in range(4) for slot in range(100)]
    rows = [place.identity for place in places]
    conditions = system.vary(contexts[rows], places)
    found = (conditions.extras["drawn"] * contexts[rows]).sum(axis=1)
    np.testing.assert_allclose(found, conditions.target, rtol=0, atol=1e-6)
    assert 0.5 <= found.min() < 0.51 and 0.69 < found.max() <= 0.7
    assert found.mean() == pytest.approx(0.6, abs=0.01) and not system.one_sided
    alone = system.vary(contexts[[2]], [places[230]])
    np.testing.assert_array_equal(alone.extras["drawn"], conditions.extras["drawn"][[230]])


def test_images_say_what_was_asked_of_them(files: dict[str, Path]) -> None:
    attributes = {"age": {"per": "identity"}, "yaw": {"value": 7.0}}
    options = {"anchors": 4, "attributes": attributes, "score": {"strength": 3.0}}
    system = loaded(files, options=options)
    contexts = system.draw_contexts([0, 0, 1])
    places = [Position(0, 0, 0), Position(0, 1, 0), Position(1, 0, 0)]
    conditions = system.vary(contexts, places)
    made = system.sample(conditions, places)
    ages = [one["asked_age"] for one in made.truth]
    assert ages[0] == ages[1] != ages[2] and all(20 <= age <= 30 for age in ages)
    assert [one["asked_yaw"] for one in made.truth] == [7.0] * 3
    assert [one["v"] for one in made.truth] == [round(float(v), 6) for v in conditions.target]
    plain = loaded(files, options=options | {"score": {"gradient": "off"}})
    images = plain.sample(conditions, places).images
    assert images.shape == (3, SIZE, SIZE, 3) and (images != made.images).any()
    turned = loaded(files, options=options | {"attributes": attributes | {"yaw": {"value": -80}}})
    assert (turned.sample(conditions, places).images != made.images).any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {}}, r"options\.anchors: None; it must be identities\.count, 4, or more"),
        ({"options": {"anchors": 3}}, r"options\.anchors: 3; it must be .* may ever grow to"),
        ({"options": {"anchors": 4, "bounds": [0.8, 0.7]}}, "lower one first"),
        ({"options": {"anchors": 4, "perturb": {}}}, r"perturb: id3 accepts none: options\.bounds"),
        ({"options": {"anchors": 4, "attributes": {"mood": {}}}}, "mood; the denoiser accepts"),
        (
            {"identities": {"count": 1, "images_each": 1, "source": "anchors", "max_cosine": 0.5}},
            r"max_cosine: 0\.5",
        ),
    ],
)
def test_mistakes_are_named(files: dict[str, Path], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        loaded(files, **changes)


def test_a_batch_has_the_embedding_and_the_attributes_of_its_image(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    held = ID3Training(
        training("id3", files, dataset, MODEL, options=OPTIONS), Place(0, 1, tmp_path)
    ).load()
    batch = next(iter(held.batches(0, 1)))
    given = batch.given[0].numpy()
    assert given.shape == (8, DIMENSION + 2)
    sides = held.data.latents[:, batch.rows].astype(np.float32)
    flip = (np.abs(sides[0] - batch.clean.numpy()).max(axis=(1, 2, 3)) > 1e-6).astype(int)
    assert 0 < flip.sum() < 8
    own = held.data.embeddings[flip, batch.rows].astype(np.float32)
    np.testing.assert_array_equal(given[:, :DIMENSION], own)
    label = held.data.labels[batch.rows]
    assert [int(key.split(b"_")[0]) for key in batch.keys] == label.tolist()
    np.testing.assert_allclose(given[:, -1], (30 + label) / 100, rtol=1e-6)
    yaw = given[:, -2] * 90 * np.where(flip, -1, 1)
    np.testing.assert_allclose((yaw - label) % 10, 0.25, atol=1e-4)
    kept = held.kept()
    assert kept["attributes_read_by"] == "truth"
    yaws, ages = kept["attributes"]
    counts = yaws["counts"]
    assert counts == counts[::-1] and sum(counts) == 2 * 24
    assert (yaws["name"], ages["name"], ages["edges"][0]) == ("yaw", "age", 30.0)

    seen = F.normalize(torch.randn(2, DIMENSION), dim=1)
    rows = torch.tensor([6, 1])
    weight = 0.5 * (1 - 1 / (1 + np.exp(-batch.t[rows].numpy() / 1000)))
    expected = -weight * (seen.numpy() * own[rows]).sum(axis=1)
    np.testing.assert_allclose(held.identity_loss(seen, batch, rows).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_reconstruction_term_is_the_error_of_the_first_step(
    files: dict[str, Path], dataset: str, tmp_path: Path, prediction: str
) -> None:
    options = OPTIONS | {"process": {"prediction": prediction}}
    held = ID3Training(
        training("id3", files, dataset, MODEL, options=options), Place(0, 1, tmp_path)
    ).load()
    t = torch.tensor([0, 1, 400])
    clean, noise = torch.randn(2, 3, 4, 4, 4)
    noisy = held.noising.noised(clean, noise, t)
    wanted = held.noising.target(clean, noise, t)
    predicted = wanted + torch.randn(3, 4, 4, 4)
    error = (predicted - wanted).square().mean(dim=(1, 2, 3))
    missed = (held.noising.clean(noisy, predicted, t) - clean).square().mean(dim=(1, 2, 3))
    extra = (held.error_weight(t) - 1.0) * error
    torch.testing.assert_close(extra, torch.stack([missed[0], 0 * error[1], 0 * error[2]]),
                               atol=2e-5, rtol=2e-2)  # fmt: skip


def test_it_learns_from_idiff_faces_denoiser_and_from_a_predictor(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    earlier = UNet(UNetConfig.model_validate(IDIFF))
    save_weights(start, "denoiser", earlier, {"system": "idiff_face"}, {})
    reader, ones = tmp_path / "attributes.safetensors", np.ones(len(STUDIO))
    save_predictor(reader, AttributeNet(SIZE, len(STUDIO)), SIZE, 0.2 * ones, 2.0 * ones)
    names = ("autoencoder", "teacher", "start", "attributes")
    weights = located(files | {"start": start, "attributes": reader}, *names)
    recipe = training("id3", files, dataset, MODEL, options=OPTIONS, weights=weights)
    held = ID3Training(recipe, Place(0, 1, tmp_path)).load()
    state = held.module.state_dict()
    for name, value in earlier.state_dict().items():
        if not name.startswith("context.linear"):
            assert torch.equal(state[name], value.half().float()), name
    assert len(held.kept()["attributes_read_by"]) == 64
    optimizer = torch.optim.AdamW(held.module.parameters(), 3e-3)
    batch, errors = next(iter(held.batches(0, 1))), []
    for _ in range(8):
        loss, numbers = held.loss(held.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
        assert "cosine" in numbers
    assert errors[-1] < 0.95 * errors[0]
    saved = tmp_path / "denoiser.safetensors"
    held.save(held.module, saved, {"licence": "CC0-1.0"})
    system = loaded(files | {"denoiser": saved})
    assert list(system.histograms) == list(NAMES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": OPTIONS | {"attributes": ["mood", "age"]}}, "has no mood in its sidecar"),
        ({"model": MODEL | {"context_size": DIMENSION}}, "context_size"),
    ],
)
def test_a_training_names_what_does_not_fit(
    files: dict[str, Path], dataset: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    model = changes.pop("model", MODEL)
    recipe = training("id3", files, dataset, model, **({"options": OPTIONS} | changes))
    with pytest.raises(InputError, match=named):
        ID3Training(recipe, Place(0, 1, tmp_path)).load()


@pytest.mark.parametrize("gradient", ["full", "cheap"])
def test_a_gpu_draws_as_a_cpu_does(files: dict[str, Path], gradient: str) -> None:
    options = {"anchors": 6, "score": {"gradient": gradient}}
    sampler = {"name": "unipc", "steps": 3, "batch_size": 4, "dtype": "float32"}
    same_images(ID3, generating("id3", files, "anchors", options=options, sampler=sampler))


def test_a_student_of_two_steps_is_learned_and_sampled(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    options = OPTIONS | {"few": FEW, "lb": 0.7}
    weights = located(files, "autoencoder", "teacher", "denoiser")
    recipe = training("id3", files, dataset, MODEL, options=options, weights=weights)
    few = files | {"denoiser": taught(ID3Training, recipe, tmp_path)}
    options = {"anchors": 6, "score": {"gradient": "off"}}
    assert drawn(loaded(few, options=options, sampler=SAMPLER)).shape == (2, SIZE, SIZE, 3)
    with pytest.raises(InputError, match=r"options\.score\.gradient: cheap; .* accepts off"):
        loaded(few, options=options | {"score": {"gradient": "cheap"}}, sampler=SAMPLER)


def test_attributes_enter_in_units_of_90_degrees_and_100_years(
    files: dict[str, Path], dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = dict.fromkeys(("yaw", "pitch", "roll", "light_azimuth", "light_elevation"), 90.0)
    wanted |= {"age": 100.0}
    options = OPTIONS | {"attributes": list(STUDIO)}
    recipe = training("id3", files, dataset, MODEL | {"context_size": DIMENSION + len(STUDIO)},
                      options=options)  # fmt: skip
    held = ID3Training(recipe, Place(0, 1, tmp_path))
    held.data = SimpleNamespace(truth=np.zeros((2, len(STUDIO)), np.float32))  # type: ignore[assignment]
    held.fits()
    assert dict(zip(STUDIO, held.divisors.tolist(), strict=True)) == {
        name: wanted.get(name, 1.0) for name in STUDIO
    }


@pytest.mark.parametrize("part", ["start", "denoiser"])
def test_a_training_keeps_the_attributes_of_the_denoiser_before_it(
    files: dict[str, Path], dataset: str, tmp_path: Path, part: str
) -> None:
    before = tmp_path / "before.safetensors"
    config = {
        "system": "id3",
        "model": MODEL,
        "process": Process(prediction="v_prediction").model_dump(),
        "attributes": [HISTOGRAMS[0] | {"divisor": 1.0}, HISTOGRAMS[1]],
    }
    save_weights(before, "denoiser", UNet(UNetConfig.model_validate(MODEL)), config, {})
    weights = located(files | {part: before}, "autoencoder", "teacher", part)
    options = OPTIONS | ({"few": FEW, "lb": 0.7} if part == "denoiser" else {})

    def loaded_with(names: list[str]) -> ID3Training:
        recipe = training("id3", files, dataset, MODEL, options=options | {"attributes": names},
                          weights=weights)  # fmt: skip
        return ID3Training(recipe, Place(0, 1, tmp_path)).load()

    held = loaded_with(list(NAMES))
    assert held.divisors.tolist() == [1.0, 100.0]
    assert [one["divisor"] for one in held.kept()["attributes"]] == [1.0, 100.0]
    said = rf"options.attributes: age, yaw; the denoiser of weights.{part} accepts: yaw, age, in"
    with pytest.raises(InputError, match=said):
        loaded_with(["age", "yaw"])


def test_a_gpu_trains_as_a_cpu_does(files: dict[str, Path], dataset: str, tmp_path: Path) -> None:
    same_step(ID3Training, training("id3", files, dataset, MODEL, options=OPTIONS), tmp_path)
