"""CemiFace's loss against its closed form, and the system on networks of a few thousand weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import make_pool
from gpu import same_images, same_step
from students import FEW, SAMPLER, drawn, taught
from tiny import ADM, DIMENSION, generating, located, save_frozen, training

from factory.diffusion.dcface import DCFaceConfig, DCFaceNet
from factory.diffusion.files import load_denoiser, save_weights
from factory.diffusion.schedule import Process
from factory.diffusion.trainable import Place
from factory.recipe import InputError, Weights
from factory.systems.base import Position
from factory.systems.cemiface import (
    CemiFace,
    CemiFaceConfig,
    CemiFaceTraining,
    InquiryDenoiser,
    Levels,
    similarity_loss,
)

MODEL: dict[str, Any] = {
    "unet": ADM,
    "context_size": DIMENSION,
    "similarity_channels": 8,
    "tokens": 2,
    "learn_empty_context": True,
}
OPTIONS = {
    "process": {"prediction": "v_prediction"},
    "empty_context_prob": 0.2,
    "identity": {"weight": 0.5, "max_t": 1.0, "glances": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a denoiser that answers to its inquiry and m, and of what it needs."""
    folder = tmp_path_factory.mktemp("weights")
    files = save_frozen(folder) | {"denoiser": folder / "denoiser.safetensors"}
    network = InquiryDenoiser(CemiFaceConfig.model_validate(MODEL))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3 if parameter.ndim == 2 else 0.08)
    config = {
        "system": "cemiface",
        "model": MODEL,
        "process": Process(prediction="v_prediction").model_dump(),
        "trained_with": {"autoencoder": "", "teacher": ""},
        "levels": Levels().model_dump(),
        "length": 1.0,
    }
    save_weights(files["denoiser"], "denoiser", network, config, {})
    return files


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight people of three images each."""
    return make_pool(tmp_path_factory.mktemp("people") / "data", 8, 3, size=16)


def loaded(files: dict[str, Path], source: str = "gallery", **changes: Any) -> CemiFace:
    system = CemiFace(generating("cemiface", files, source, **changes))
    system.load()
    return system


def test_the_losss_optimum_is_one_minus_gamma_times_one_minus_m() -> None:
    gamma = torch.rand(200, dtype=torch.float64)
    m = 2 * torch.rand(200, dtype=torch.float64) - 1
    best = (1 - gamma * (1 - m)).requires_grad_()
    loss = similarity_loss(best, m, gamma)
    (slope,) = torch.autograd.grad(loss.sum(), best)
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    tried = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    losses = similarity_loss(tried[:, None], m, gamma)
    torch.testing.assert_close(tried[losses.argmin(dim=0)], best.detach(), atol=5e-4, rtol=0)
    # What is left at the optimum: gamma (1 - gamma) (1 - m)^2, as the two squares pull apart.
    torch.testing.assert_close(loss.detach(), gamma * (1 - gamma) * (1 - m) ** 2)


def test_the_levels_are_those_of_the_paper() -> None:
    values = Levels().values()
    assert len(values) == 51 and values[0] == -1 and values[-1] == 1 and 0.0 in values
    np.testing.assert_allclose(np.diff(values), 0.04)
    assert len(Levels(step=0.02).values()) == 101
    assert Levels(low=0.0, step=0.06).values()[-1] == pytest.approx(0.96)


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        network = InquiryDenoiser(CemiFaceConfig())
        given = (torch.zeros(1, 512), torch.zeros(1, 1))
        assert network(torch.zeros(1, 3, 112, 112), torch.zeros(1), given).shape[1] == 3
        assert network.keys.out_features == 1024
    counted = {name: sum(p.numel() for p in part.parameters())
               for name, part in network.named_children()}  # fmt: skip
    assert counted == {"unet": 93_563_910, "similarity": 1024, "keys": 1024 * 1024 + 1024}


def test_inquiry_and_m_reach_the_image_and_neighbours_do_not(files: dict[str, Path]) -> None:
    system = loaded(files)
    contexts = system.draw_contexts([0, 1, 2])
    assert contexts.shape == (3, DIMENSION) and contexts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(system.draw_contexts([2]), contexts[2:], atol=1e-5)
    places = [Position(identity, 0, 0) for identity in range(3)]
    conditions = system.vary(contexts, places)
    assert (conditions.target == 0.0).all() and not system.one_sided
    made = system.sample(conditions, places)
    assert made.truth == [{"m": 0.0}] * 3
    images = made.images.astype(int)
    conditions.target[0], conditions.context[1] = -1.0, -contexts[1]
    changed = system.sample(conditions, places).images.astype(int)
    moved = np.abs(changed - images).max(axis=(1, 2, 3))
    assert moved[0] >= 1 and moved[1] >= 1 and moved[2] == 0


@pytest.mark.parametrize(
    ("m", "wanted"),
    [
        (0.21, {0.2: 1.0}),
        ([0.0, 0.1], {0.0: 1 / 3, 0.04: 1 / 3, 0.08: 1 / 3}),
        (
            [{"m_band": [-0.04, 0.0], "weight": 3}, {"m_band": [0.8, 0.8], "weight": 1}],
            {-0.04: 0.375, 0.0: 0.375, 0.8: 0.25},
        ),
    ],
)
def test_m_is_drawn_from_the_levels_trained(
    files: dict[str, Path], m: Any, wanted: dict[float, float]
) -> None:
    system = loaded(files, options={"m": m})
    places = [Position(identity, slot, 0) for identity in range(30) for slot in range(40)]
    drawn = system.vary(np.zeros((1200, DIMENSION), np.float32), places).target
    values, counts = np.unique(drawn.round(6), return_counts=True)
    shares = dict(zip(values.tolist(), (counts / 1200).tolist(), strict=True))
    assert {round(value, 2): share for value, share in shares.items()} == pytest.approx(
        wanted, abs=0.05
    )
    np.testing.assert_array_equal(system.vary(np.zeros((1, 8)), places[700:701]).target, drawn[700])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"m": [0.01, 0.03]}}, r"holds no similarity .* steps of 0.04"),
        ({"options": {"m": 1.5}}, r"options\.m"),
        ({"options": {"perturb": {}}}, r"perturb: cemiface accepts none: its m"),
        ({"options": {"bank": {"url": "x", "digest": "0" * 16}}}, "bank: given"),
    ],
)
def test_mistakes_are_named(files: dict[str, Path], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        loaded(files, **changes)


def test_an_image_is_its_own_inquiry(files: dict[str, Path], dataset: str, tmp_path: Path) -> None:
    model = MODEL | {"context": "raw"}
    recipe = training("cemiface", files, dataset, model, options=OPTIONS)
    held = CemiFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    batch = next(iter(held.batches(0, 1)))
    inquiry, m = batch.given
    sides = held.data.latents[:, batch.rows].astype(np.float32)
    flip = (np.abs(sides[0] - batch.clean.numpy()).max(axis=(1, 2, 3)) > 1e-6).astype(int)
    assert np.abs(sides[flip, np.arange(8)] - batch.clean.numpy()).max() < 1e-6
    own = held.data.embeddings[flip, batch.rows].astype(np.float32)
    np.testing.assert_array_equal(batch.wanted["context"].numpy(), own)
    lengths = held.data.norms[flip, batch.rows].astype(np.float32)[:, None]
    np.testing.assert_allclose(inquiry.numpy(), own * lengths, rtol=1e-6)
    assert np.isin(m[:, 0].numpy().round(4), held.values.round(4).astype(np.float32)).all()
    seen = torch.nn.functional.normalize(torch.randn(3, DIMENSION), dim=1)
    rows = torch.tensor([5, 0, 2])
    gamma = batch.t[rows].numpy() / 1000
    similarity = (seen.numpy() * own[rows]).sum(axis=1)
    expected = (1 - gamma) * (1 - similarity) ** 2 + gamma * (m[rows, 0].numpy() - similarity) ** 2
    np.testing.assert_allclose(held.identity_loss(seen, batch, rows).numpy(), expected, rtol=1e-5)
    assert held.kept()["length"] == pytest.approx(float(held.data.norms.mean(dtype=np.float64)))


def test_a_pair_has_the_similarity_that_it_has(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    options = OPTIONS | {"other_image_prob": 1.0}
    recipe = training("cemiface", files, dataset, MODEL, options=options)
    held = CemiFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    batch = next(iter(held.batches(0, 1)))
    inquiry, m = (part.numpy() for part in batch.given)
    sides = held.data.embeddings.astype(np.float32)
    found = (sides[:, None] == inquiry[None, :, None]).all(axis=-1)  # [2, B, N]
    assert (found.sum(axis=(0, 2)) >= 1).all()
    labels = [set(held.data.labels[found[:, n].any(axis=0)]) for n in range(len(inquiry))]
    assert all(held.data.labels[row] in of for row, of in zip(batch.rows, labels, strict=True))
    assert not all(found[:, n, row].any() for n, row in enumerate(batch.rows))
    flipped = np.array([found[1, n].any() for n in range(len(inquiry))], int)
    own = sides[flipped, batch.rows]
    np.testing.assert_allclose(m[:, 0], (own * inquiry).sum(axis=1), atol=1e-6)
    seen = torch.nn.functional.normalize(torch.randn(len(m), DIMENSION), dim=1)
    similarity = (seen.numpy() * inquiry).sum(axis=1)
    loss = held.identity_loss(seen, batch, torch.arange(len(m))).numpy()
    np.testing.assert_allclose(loss, (m[:, 0] - similarity) ** 2, atol=1e-6)


def test_the_inquiry_enters_the_residual_blocks_if_asked_for() -> None:
    model = CemiFaceConfig.model_validate(MODEL | {"conditioning": "both"})
    network = InquiryDenoiser(model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    torch.nn.init.zeros_(network.keys.weight)  # so that the attention does not see it
    x, t = torch.randn(2, *model.shape), torch.full((2,), 500)
    first, second = (torch.nn.functional.normalize(torch.randn(2, DIMENSION)) for _ in range(2))
    m, empty = torch.full((2, 1), 0.5), torch.tensor([True, False])
    with torch.no_grad():
        made = [network(x, t, (one, m), empty=empty) for one in (first, second)]
        nothing = network(x, t, None)
    assert torch.equal(made[0][0], made[1][0])
    torch.testing.assert_close(made[0][0], nothing[0])
    assert (made[0][1] - made[1][1]).abs().max() > 1e-4


def test_it_learns_from_an_unconditional_model_and_generates(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    stage1 = DCFaceNet(DCFaceConfig.model_validate({"unet": ADM}))
    for parameter in stage1.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    save_weights(start, "denoiser", stage1, {"system": "dcface"}, {})
    weights = located(files | {"start": start}, "autoencoder", "teacher", "start")
    recipe = training("cemiface", files, dataset, MODEL, options=OPTIONS, weights=weights)
    held = CemiFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    for name, value in stage1.state_dict().items():
        assert torch.equal(held.module.state_dict()[name], value.half().float()), name
    optimizer = torch.optim.AdamW(held.module.parameters(), 3e-3)
    batch, errors = next(iter(held.batches(0, 1))), []
    for _ in range(12):
        loss, numbers = held.loss(held.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
        assert -1.0 <= numbers["cosine"] <= 1.0
    assert errors[-1] < 0.9 * errors[0]
    assert all(parameter.grad is None for parameter in held.teacher.parameters())
    saved = tmp_path / "denoiser.safetensors"
    held.save(held.module, saved, {"licence": "CC0-1.0"})
    system = loaded(
        files | {"denoiser": saved},
        sampler={
            **{"name": "ddim", "steps": 2, "guidance_scale": 2.0, "eta": 1.0, "batch_size": 2},
            "dtype": "float32",
        },
        identities={"count": 2, "images_each": 1, "source": "two_stage"},
    )
    contexts = system.draw_contexts([0, 1])
    places = [Position(0, 0, 0), Position(1, 0, 0)]
    assert system.sample(system.vary(contexts, places), places).images.shape == (2, 16, 16, 3)


def test_a_student_of_two_steps_is_learned_and_sampled(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    options = {"process": OPTIONS["process"], "few": FEW}
    weights = located(files, "autoencoder", "teacher", "denoiser")
    recipe = training("cemiface", files, dataset, MODEL, options=options, weights=weights)
    few = taught(CemiFaceTraining, recipe, tmp_path)
    assert drawn(loaded(files | {"denoiser": few}, sampler=SAMPLER)).shape == (2, 16, 16, 3)
    with pytest.raises(InputError, match="has learned ddim of 2 steps"):
        loaded(files | {"denoiser": few})


def test_a_student_has_levels_that_its_teacher_learned(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    module, config = load_denoiser(
        Weights(location=str(files["denoiser"])),
        lambda config: InquiryDenoiser(CemiFaceConfig.model_validate(config["model"])),
    )
    narrow = tmp_path / "narrow.safetensors"
    save_weights(narrow, "denoiser", module, config | {"levels": {"low": 0.0, "high": 0.8}}, {})
    weights = located(files | {"denoiser": narrow}, "autoencoder", "teacher", "denoiser")

    def load(**levels: float) -> CemiFaceTraining:
        options = {"process": OPTIONS["process"], "few": FEW, "levels": levels}
        recipe = training("cemiface", files, dataset, MODEL, options=options, weights=weights)
        return CemiFaceTraining(recipe, Place(0, 1, tmp_path)).load()

    assert load(low=0.2, high=0.8).values.min() == 0.2
    for wide in ({"low": -0.2, "high": 0.8}, {"low": 0.0, "high": 1.0}):
        with pytest.raises(InputError, match=rf"levels: {wide['low']} to .* learned, 0.0 to 0.8"):
            load(**wide)


def test_a_gpu_trains_and_draws_as_a_cpu_does(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    same_step(
        CemiFaceTraining, training("cemiface", files, dataset, MODEL, options=OPTIONS), tmp_path
    )
    sampler = {"name": "ddim", "steps": 2, "guidance_scale": 2.0, "eta": 1.0, "batch_size": 4}
    recipe = generating("cemiface", files, "gallery", sampler=sampler | {"dtype": "float32"})
    same_images(CemiFace, recipe)
