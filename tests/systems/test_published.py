"""What published recipes ask of systems: spacing, variance, torch's noise, others' files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DIMENSION, IDIFF, SIZE, generating, save_frozen, save_idiff
from torch import Tensor

from factory.datasets.provenance import sha256_file
from factory.diffusion.dcface import DCFaceConfig, DCFaceNet
from factory.diffusion.files import save_weights
from factory.diffusion.sampling import sample_latents
from factory.diffusion.schedule import Process, make_scheduler
from factory.diffusion.tokens import StyleTokens, patch_statistics
from factory.diffusion.unet import UNet, UNetConfig
from factory.plan import Shard
from factory.recipe import InputError, Sampler
from factory.recipe.load import held
from factory.systems.base import Position
from factory.systems.dcface import DCFace
from factory.systems.idiff_face import IDiffFace

SAMPLER = {"steps": 3, "batch_size": 2, "dtype": "float32"}
ANCESTRAL = {**SAMPLER, "name": "ddpm"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    files = save_frozen(folder) | save_idiff(folder)
    unet = {"size": SIZE, "widths": [32, 32], "attention": [False, True], "unresized": []}
    model = {"unet": unet | {"head_channels": 16, "norm_groups": 2}}
    torch.manual_seed(1)
    network = DCFaceNet(DCFaceConfig.model_validate(model))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    config = {"system": "dcface", "model": model, "process": Process().model_dump()}
    config |= {"trained_with": {}}
    save_weights(folder / "nobody.safetensors", "denoiser", network, config, {})
    bare = UNet(UNetConfig.model_validate({**IDIFF, "conditioning": "none"}))
    config = {"model": {**IDIFF, "conditioning": "none"}, "process": Process().model_dump()}
    save_weights(folder / "bare.safetensors", "denoiser", bare, config, {})
    return files | {name: folder / f"{name}.safetensors" for name in ("nobody", "bare")}


def located(files: dict[str, Path], **names: str) -> dict[str, Any]:
    return {name: {"location": str(files[file])} for name, file in names.items()}


def places(count: int) -> list[Position]:
    return [Position(0, slot, 0) for slot in range(count)]


def test_the_published_statistic_is_mean_less_mean_of_squares() -> None:
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    mean, second = patch_statistics(x, 3, "mean_minus_square")
    for number, part in enumerate((x, x[:, :, :2, :2], x[:, :, :2, 2:4]), start=0):
        flat = part.flatten(2)
        torch.testing.assert_close(mean[:, number], flat.mean(2))
        torch.testing.assert_close(second[:, number], flat.mean(2) - flat.square().mean(2))
    usual = patch_statistics(x, 3)
    assert torch.equal(usual[0], mean)
    torch.testing.assert_close(usual[1][:, 0], x.flatten(2).std(2, correction=0))
    tokens = [
        StyleTokens(5, 6, 3, 8, statistic=name).eval() for name in ("std", "mean_minus_square")
    ]
    tokens[1].load_state_dict(tokens[0].state_dict())
    assert not torch.allclose(tokens[0](x), tokens[1](x))


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"name": "ddim", "steps": 4}, [999, 749, 499, 249]),
        ({"name": "ddim", "steps": 4, "spacing": "trailing"}, [999, 749, 499, 249]),
        ({"name": "ddim", "steps": 4, "spacing": "leading"}, [750, 500, 250, 0]),
        ({"name": "ddpm", "steps": 4}, [750, 500, 250, 0]),
        ({"name": "ddpm", "steps": 4, "spacing": "even"}, [999, 666, 333, 0]),
        ({"name": "ddim", "steps": 4, "spacing": "leading", "offset": 1}, [751, 501, 251, 1]),
        ({"name": "dpmsolver++", "steps": 4, "spacing": "even"}, [999, 749, 500, 250]),
    ],
)
def test_spacings(fields: dict[str, Any], steps: list[int]) -> None:
    assert make_scheduler(Process(), Sampler(**fields)).timesteps.tolist() == steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "ddim", "spacing": "even"}, "with name ddim it must be trailing or leading"),
        ({"name": "ddpm", "spacing": "trailing"}, "with name ddpm it must be leading or even"),
        ({"name": "unipc", "spacing": "leading"}, "with name unipc it must be null"),
        ({"name": "ddim", "noiseless": 2}, "noiseless is 2; with name ddim it must be 1"),
        (
            {"name": "ddim", "variance": "learned"},
            "variance is learned; with name ddim it must be beta",
        ),
        ({"name": "dpmsolver++", "spacing": "leading"}, "with name dpmsolver.. it must be even"),
        (
            {"name": "dpmsolver++", "offset": 1},
            "offset is 1; with name dpmsolver.. and spacing null it must be 0",
        ),
    ],
)
def test_a_sampler_refuses_what_it_has_not(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(steps=4, **fields)


def test_a_learned_variance_is_between_beta_and_the_posteriors() -> None:
    """Of Gaussian data the whole step is known: the network says the mean, v picks the variance."""

    def numbered(step: int) -> Tensor:
        return torch.full((1, 1, 1, 1), float(step))

    found = {}
    for v in (-1.0, 0.0, 1.0):

        def predict(x: Tensor, t: Tensor, v: float = v) -> Tensor:
            return torch.cat([torch.zeros_like(x), torch.full_like(x, v)], dim=1)

        fields = {"name": "ddpm", "steps": 2, "spacing": "even", "variance": "learned"}
        made = sample_latents(predict, [0], (1, 1, 1), Process(), Sampler(**fields), draw=numbered)
        found[v] = float(made)
    betas = np.linspace(1e-4, 0.02, 1000)
    first, last = 1 - betas[0], np.prod(1 - betas)
    beta = 1 - last / first
    posterior = beta * (1 - first) / (1 - last)
    for v, deviation in (
        (1.0, beta**0.5),
        (-1.0, posterior**0.5),
        (0.0, (beta * posterior) ** 0.25),
    ):
        assert found[v] == pytest.approx(deviation / first**0.5, rel=1e-4)


@pytest.mark.parametrize("noiseless", [1, 2])
def test_the_last_steps_may_add_no_noise(noiseless: int) -> None:
    drawn: list[int] = []

    def draw(step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros(1, 1, 2, 2)

    sampler = Sampler(name="ddpm", steps=5, noiseless=noiseless)
    sample_latents(lambda x, t: x, [0], (1, 2, 2), Process(), sampler, draw=draw)
    assert drawn == list(range(6 - noiseless))


def test_older_claims_are_of_the_default_sampler() -> None:
    before = {"kind": "generate", "sampler": {"name": "ddim", "steps": 3}}
    after = held(before)["sampler"]
    assert after == before["sampler"] | {
        "spacing": None,
        "offset": 0,
        "noiseless": 1,
        "variance": "beta",
        "noise": "position",
    }


def sampled(system: IDiffFace | DCFace, batches: int = 2) -> np.ndarray:
    system.load()
    system.enter(Shard(0, 2, 0, 4))
    made = []
    for number in range(batches):
        part = [Position(0, 2 * number + slot, 0) for slot in range(2)]
        contexts = system.draw_contexts([0, 0])
        made.append(system.sample(system.vary(contexts, part), part).images)
    return np.concatenate(made)


def test_torchs_noise_follows_the_order_of_a_shard(files: dict[str, Path]) -> None:
    weights = located(files, denoiser="denoiser", autoencoder="autoencoder")
    recipe = generating(
        "idiff_face", files, "uniform", weights=weights, sampler={**ANCESTRAL, "noise": "torch"}
    )
    made = sampled(IDiffFace(recipe))
    assert np.array_equal(made, sampled(IDiffFace(recipe)))
    assert len({image.tobytes() for image in made}) == 4
    other = generating("idiff_face", files, "uniform", weights=weights, sampler=ANCESTRAL)
    assert not np.array_equal(made, sampled(IDiffFace(other)))
    system = IDiffFace(recipe)
    system.load()
    assert system.recognizer is None
    for start, seed in ((0, 42), (2, 84)):  # one shard of two identities is one process of theirs
        system.enter(Shard(start, start + 2, 0, 3))
        draw = system.noise(places(2))
        assert draw is not None
        wanted = torch.Generator().manual_seed(seed)
        for step in range(3):
            assert torch.equal(draw(step), torch.randn(2, 4, 4, 4, generator=wanted))


def test_torchs_noise_accepts_no_retries_and_no_other_system(files: dict[str, Path]) -> None:
    sampler = {**ANCESTRAL, "noise": "torch"}
    screens = {"near_duplicate": {"max_cosine": 0.9}}
    with pytest.raises(
        InputError, match=r"max_attempts is 3; with sampler.noise torch .* must be 1"
    ):
        generating("idiff_face", files, "uniform", sampler=sampler, screens=screens)
    generating(
        "idiff_face", files, "uniform", sampler=sampler, screens=screens | {"max_attempts": 1}
    )
    with pytest.raises(InputError, match="two_stage accepts position"):
        IDiffFace(generating("idiff_face", files, "two_stage", sampler=sampler))
    from factory.systems.cemiface import CemiFace

    with pytest.raises(InputError, match=r"sampler\.noise: torch; cemiface accepts position"):
        CemiFace(generating("cemiface", files, "gallery", sampler=sampler))


def test_a_teacher_is_needed_only_where_something_is_embedded(files: dict[str, Path]) -> None:
    weights = located(files, denoiser="denoiser", autoencoder="autoencoder")
    given: dict[str, Any] = {"weights": weights, "sampler": ANCESTRAL}
    IDiffFace(generating("idiff_face", files, "uniform", **given))
    with pytest.raises(InputError, match=r"weights\.teacher: missing; idiff_face needs it"):
        IDiffFace(generating("idiff_face", files, "gallery", **given))
    given |= {"screens": {"near_duplicate": {"max_cosine": 0.9}}}
    with pytest.raises(InputError, match=r"missing; screens\.near_duplicate needs it"):
        IDiffFace(generating("idiff_face", files, "uniform", **given))


def test_stage_one_needs_no_teacher_and_may_predict_its_variance(files: dict[str, Path]) -> None:
    sampler = {**ANCESTRAL, "spacing": "even", "variance": "learned"}
    given: dict[str, Any] = {"weights": located(files, denoiser="nobody")}
    system = DCFace(generating("dcface", files, "noise", sampler=sampler, **given))
    learned = sampled(system)
    assert learned.shape == (4, SIZE, SIZE, 3) and learned.std() > 0
    plain = DCFace(generating("dcface", files, "noise", sampler=ANCESTRAL, **given))
    assert not np.array_equal(learned, sampled(plain))
    with pytest.raises(InputError, match=r"sampler\.variance: learned; idiff_face accepts beta"):
        IDiffFace(generating("idiff_face", files, "uniform", sampler=sampler))


def test_contexts_are_taken_from_a_file_in_their_order(
    files: dict[str, Path], tmp_path: Path
) -> None:
    vectors = {f"id{n}": np.random.default_rng(n).normal(size=DIMENSION) for n in range(4)}
    path = tmp_path / "contexts.npy"
    torch.save(vectors, path)
    named = {"url": str(path), "digest": sha256_file(path)[:16]}
    recipe = generating("idiff_face", files, "file", options={"contexts": named})
    system = IDiffFace(recipe)
    system.load()
    drawn = system.draw_contexts(range(4))
    for row, vector in zip(drawn, vectors.values(), strict=True):
        np.testing.assert_allclose(row, vector / np.linalg.norm(vector), rtol=1e-5)
    wrong = {"contexts": {**named, "digest": "0" * 16}}
    with pytest.raises(
        InputError, match=f"contexts.digest: 0000000000000000, but .* has {named['digest']}"
    ):
        IDiffFace(generating("idiff_face", files, "file", options=wrong)).open()
    with pytest.raises(InputError, match=r"options\.contexts: missing"):
        IDiffFace(generating("idiff_face", files, "file"))
    many = generating(
        "idiff_face",
        files,
        "file",
        options={"contexts": named},
        identities={"count": 5, "images_each": 1, "source": "file"},
    )
    with pytest.raises(InputError, match=r"identities\.count: 5; .* has 4 contexts"):
        IDiffFace(many).open()


def test_a_network_without_contexts_draws_nobody(files: dict[str, Path]) -> None:
    weights = located(files, denoiser="bare", autoencoder="autoencoder")
    system = IDiffFace(generating("idiff_face", files, "noise", weights=weights, sampler=ANCESTRAL))
    assert not system.banked and sampled(system).shape == (4, SIZE, SIZE, 3)
    other = IDiffFace(
        generating("idiff_face", files, "uniform", weights=weights, sampler=ANCESTRAL)
    )
    with pytest.raises(InputError, match="was trained with no contexts"):
        other.load()
    given = IDiffFace(generating("idiff_face", files, "noise", sampler=ANCESTRAL))
    with pytest.raises(InputError, match="was trained with contexts"):
        given.load()
