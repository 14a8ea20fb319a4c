"""Published checkpoints, filled from names alone, against the figures of their authors' code.

The figures are numbers in `published/golden.json`; every file here is loaded from disk by the
location that a recipe would name.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filled import (
    AVERAGED,
    GOLDEN,
    LAYOUTS,
    RAW,
    TEACHER,
    apart,
    context,
    dcface_layout,
    filled,
    normal,
    pixels,
)
from torch import Tensor, nn

from factory.diffusion import published
from factory.diffusion.autoencoder import VQ
from factory.diffusion.dcface import DCFaceConfig, DCFaceNet, early_features
from factory.diffusion.files import check_foreign, load_autoencoder, load_denoiser
from factory.diffusion.published import read_published, sized
from factory.diffusion.sampling import guided, sample_latents
from factory.diffusion.schedule import Process, make_scheduler
from factory.diffusion.unet import UNet, UNetConfig
from factory.recipe import InputError, Sampler, Weights
from factory.recognition.recognizers import load_recognizer

CLOSE, TRAJECTORY = 1e-4, 1e-3
STYLES = {3: "dcface_3x3", 5: "dcface_5x5"}


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    with torch.no_grad():
        yield


def steps(t: int) -> Tensor:
    return torch.tensor([t])


def weights(prefix: str, path: Path) -> Weights:
    return Weights(location=f"{prefix}:{path}")


def mixer(config: dict[str, Any]) -> nn.Module:
    return DCFaceNet(DCFaceConfig.model_validate(sized(config["model"], 256)))


def unet(config: dict[str, Any]) -> nn.Module:
    return UNet(UNetConfig.model_validate(config["model"]))


def saved(layout: dict[str, list[int]], path: Path, wrapped: bool = False) -> Path:
    state = filled(layout)
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return path


@pytest.fixture(scope="module")
def dcface_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = saved(dcface_layout(3), tmp_path_factory.mktemp("dcface") / "dcface_3x3.ckpt", True)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def idiff_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    layout, path = LAYOUTS["idiff_face_ca"], tmp_path_factory.mktemp("idiff") / "model.ckpt"
    yield saved(layout, path)
    path.unlink()


def mixed(path: Path, golden: dict[str, Any]) -> tuple[DCFaceNet, tuple[Tensor, Tensor]]:
    """Load a mixer and its teacher, compare all that is made of two images, and return it."""
    network, config = load_denoiser(weights("dcface", path), mixer)
    assert isinstance(network, DCFaceNet) and config["system"] == "dcface"
    teacher = load_recognizer(f"dcface:{path}")
    style = pixels("style_image", 112)
    if "style_teacher_embedding" in golden:
        assert apart(teacher.module(style), golden["style_teacher_embedding"]) < CLOSE
    early = early_features(teacher.module, teacher.size, style)
    tokens, feature = network.mixed(pixels("id_image", 112), early)
    found = {
        "style_features": early,
        "id_feature": feature,
        "id_tokens": tokens[:, :49],
        "style_tokens": tokens[:, 49:],
        "keys": network.adapter(tokens, 1).transpose(1, 2),
    }
    for name, value in found.items():
        assert apart(value, golden[name]) < CLOSE, name
    return network, (tokens, feature)


def test_dcface_answers_as_the_published_code(dcface_file: Path) -> None:
    golden, x = GOLDEN["dcface_3x3"], normal("x_t", 1, 3, 112, 112)
    network, given = mixed(dcface_file, golden)
    for t in (500, 980, 0):
        assert apart(network.denoise(x, steps(t), given), golden[f"eps_t{t}"]) < CLOSE

    alone = GOLDEN["dcface_unet_alone"]
    keys = normal("cross_attn", 1, 1024, 59).transpose(1, 2)
    whole = network.unet(x, steps(500), keys, normal("stylemod", 1, 512) * 0.1, whole=True)
    assert apart(whole[:, :3], alone["eps_t500"]) < CLOSE
    assert apart(whole[:, 3:], alone["unused_variance_t500"]) < CLOSE
    assert apart(network.unet(x, steps(500)), alone["eps_no_condition_t500"]) < CLOSE

    golden, process = GOLDEN["dcface_sampler"], Process()
    sampler = Sampler(name="ddim", steps=50, eta=1.0, spacing="leading")
    scheduler = make_scheduler(process, sampler, clip=True)
    assert scheduler.timesteps.tolist() == golden["timesteps_50"]
    products = scheduler.alphas_cumprod[golden["alphas_cumprod_index"]]
    torch.testing.assert_close(products, torch.tensor(golden["alphas_cumprod"]), rtol=1e-6, atol=0)
    passed, drawn = [], []

    def draw(step: int) -> Tensor:
        drawn.append(step)
        return x if step == 0 else normal(f"noise_{step - 1}", 1, 3, 112, 112)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        passed.append((int(t), noisy))
        return network.denoise(noisy, t, given)

    five = sampler.model_copy(update={"steps": 5})
    made = sample_latents(predict, [0], (3, 112, 112), process, five, None, True, draw)
    assert [t for t, _ in passed] == golden["ddim5"]["timesteps"] and drawn == [0, 1, 2, 3, 4, 5]
    for value, figure in zip(
        [*(noisy for _, noisy in passed[1:]), made], golden["ddim5"]["x_after_step"], strict=True
    ):
        assert apart(value, figure) < TRAJECTORY


@pytest.mark.slow
def test_dcface_begins_its_fifty_steps_as_the_published_code(dcface_file: Path) -> None:
    network, given = mixed(dcface_file, GOLDEN["dcface_3x3"])
    golden, x = GOLDEN["dcface_sampler"]["ddim50_first5"], normal("x_t", 1, 3, 112, 112)
    sampler = Sampler(name="ddim", steps=50, eta=1.0, spacing="leading")
    passed: list[Tensor] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        passed.append(noisy)
        return network.denoise(noisy, t, given) if len(passed) < 6 else noisy

    def draw(step: int) -> Tensor:
        return x if step == 0 else normal(f"noise_{step - 1}", 1, 3, 112, 112)

    sample_latents(predict, [0], (3, 112, 112), Process(), sampler, None, True, draw)
    for value, figure in zip(passed[1:6], golden["x_after_step"], strict=True):
        assert apart(value, figure) < TRAJECTORY


@pytest.mark.slow
def test_dcface_loads_its_average_and_never_its_raw_weights(tmp_path: Path) -> None:
    """The other grid, in a file that has both U-Nets; each answers in its own way."""
    path = saved(dcface_layout(5, raw=True), tmp_path / "dcface_5x5.ckpt", wrapped=True)
    golden, x = GOLDEN["dcface_5x5"], normal("x_t", 1, 3, 112, 112)
    network, given = mixed(path, golden)
    for t in (500, 980, 0):
        assert apart(network.denoise(x, steps(t), given), golden[f"eps_t{t}"]) < CLOSE
    raw = saved({RAW + name: shape for name, shape in LAYOUTS["adm"].items()}, tmp_path / "raw.pt")
    state = read_published(weights("dcface", raw), "denoiser").state
    network.unet.load_state_dict({k.removeprefix("unet."): v for k, v in state.items()})
    assert apart(network.denoise(x, steps(500), given), golden["eps_raw_t500"]) < CLOSE


@pytest.mark.slow
def test_stage_one_answers_as_the_published_code(tmp_path: Path) -> None:
    path, golden = saved(LAYOUTS["adm"], tmp_path / "ffhq_10m.pt"), GOLDEN["dcface_stage1_ffhq"]
    network, _ = load_denoiser(weights("dcface", path), mixer)
    made = network.denoise(normal("x_t_256", 1, 3, 256, 256), steps(500), None, whole=True)
    assert apart(made, golden["out_t500"]) < CLOSE
    assert apart(made[:, :3], golden["eps_t500"]) < CLOSE


def test_idiff_face_answers_as_the_published_code(idiff_file: Path) -> None:
    network, config = load_denoiser(weights("idiff_face", idiff_file), unet)
    golden, x, given = GOLDEN["idiff_face_ca"], normal("x_t", 1, 3, 32, 32), context()
    for t in (500, 980, 0):
        assert apart(network(x, steps(t), given), golden[f"eps_t{t}"]) < CLOSE
    nobody = network(x, steps(500), None)
    assert apart(nobody, golden["eps_empty_context_t500"]) < CLOSE
    assert torch.equal(network(x, steps(500), given, empty=torch.tensor([True])), nobody)

    process = Process.model_validate(config["process"])
    assert process == Process()
    sampler = Sampler(name="ddpm", steps=1000, noiseless=2)
    scheduler = make_scheduler(process, sampler)
    places = golden["schedule_index"]
    for name, found in (("alpha_bars", scheduler.alphas_cumprod), ("betas", scheduler.betas)):
        wanted = torch.tensor(golden["schedule"][name])
        torch.testing.assert_close(found[places], wanted, rtol=1e-6, atol=0)

    # The last five of the thousand, from x_t in the place of whatever reaches them.
    passed: list[Tensor] = []
    drawn: list[int] = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        if int(t) > 4:
            return torch.zeros_like(noisy)
        if int(t) == 4:
            noisy.copy_(x)
        passed.append(noisy)
        return network(noisy, t, given)

    def draw(step: int) -> Tensor:
        drawn.append(step)
        last = step - 996  # the number of the step that begins at i = 4, counted from 1
        return normal(f"noise_{last}", 1, 3, 32, 32) if last >= 0 else torch.zeros(1, 3, 32, 32)

    made = sample_latents(predict, [0], (3, 32, 32), process, sampler, draw=draw)
    assert drawn == list(range(999)), "none at i = 1 and i = 0"
    for value, figure in zip(
        [*passed[1:], made], golden["ddpm_last5"]["x_after_step"], strict=True
    ):
        assert apart(value, figure) < TRAJECTORY


@pytest.mark.slow
def test_idiff_face_without_contexts_answers_as_the_published_code(tmp_path: Path) -> None:
    layout = LAYOUTS["idiff_face_unconditional"]
    state = filled(layout)
    bare = {k.removeprefix("eps_model."): v for k, v in state.items() if k.startswith("eps_model.")}
    torch.save(bare, tmp_path / "bare.ckpt")
    network, config = load_denoiser(weights("idiff_face", tmp_path / "bare.ckpt"), unet)
    assert config["model"]["conditioning"] == "none"
    made = guided(network, None, 1.0)(normal("x_t", 1, 3, 32, 32), steps(500))
    assert apart(made, GOLDEN["idiff_face_unconditional"]["eps_t500"]) < CLOSE


def test_vq_f4_answers_as_the_published_code(tmp_path: Path) -> None:
    golden, latent = GOLDEN["vq_f4"], normal("latent", 1, 3, 32, 32)
    halves = {half: filled(LAYOUTS[f"ldm_vq_f4_{half}"]) for half in ("encoder", "decoder")}
    decoder = tmp_path / "first_stage_decoder_state_dict.pt"
    torch.save(halves["decoder"], decoder)
    alone = load_autoencoder(weights("ldm", decoder), 128)
    with pytest.raises(InputError, match=r"no encoder.*first_stage_encoder_state_dict\.pt"):
        alone.encode(pixels("vq_image", 128))
    torch.save(halves["encoder"], tmp_path / "first_stage_encoder_state_dict.pt")
    vq = load_autoencoder(weights("ldm", decoder), 128)
    assert isinstance(vq, VQ)
    assert apart(vq.decode(latent), golden["decode_latent"]) < CLOSE
    assert torch.equal(alone.decode(latent), vq.decode(latent))
    quantised, _, (_, _, codes) = vq.model.quantize(latent)
    assert codes.flatten().tolist() == golden["codes_of_latent"]
    assert apart(quantised, golden["quantised_latent"]) < CLOSE
    encoded = vq.encode(pixels("vq_image", 128))
    assert apart(encoded, golden["encode"]) < CLOSE
    codes = vq.model.quantize(encoded)[2][2].flatten().tolist()
    others = sum(a != b for a, b in zip(codes, golden["codes_of_encoded"], strict=True))
    assert others <= 2

    whole = {f"first_stage_model.{k}": v for half in halves.values() for k, v in half.items()}
    whole["model.diffusion_model.out.2.weight"] = torch.zeros(3, 3)
    torch.save({"state_dict": whole}, tmp_path / "model.ckpt")
    single = load_autoencoder(weights("ldm", tmp_path / "model.ckpt"), 128)
    assert torch.equal(single.decode(latent), vq.decode(latent))
    assert torch.equal(single.encode(pixels("vq_image", 128)), encoded)


Layouts = dict[str, Tensor]


def shapes(layout: dict[str, list[int]]) -> Layouts:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def without(*prefixes: str) -> Callable[[Layouts], Layouts]:
    return lambda found: {k: v for k, v in found.items() if not k.startswith(prefixes)}


def changed(name: str, *shape: int) -> Callable[[Layouts], Layouts]:
    return lambda found: {**found, name: torch.empty(shape, device="meta")}


WRONG = {
    "has raw weights alone": lambda found: {k.replace(AVERAGED, RAW): v for k, v in found.items()},
    "has no teacher inside .recognition_model": without(TEACHER),
    "has no recognizer inside .label_mapping": without("label_mapping.backbone."),
    "lacks cross_attn_adapter.weight": without("external_mapping.cross_attn_adapter."),
    "has 17 rows, which is no grid": changed("external_mapping.pos_emb_0.0", 17, 512),
    "without a place here .later.weight": changed(f"{AVERAGED}later.weight", 3),
    "lacks out.2.bias": without(f"{AVERAGED}out.2.bias"),
    "lacks input_blocks.0.0.weight": lambda found: {"net.weight": torch.empty(1)},
    r"adapter.linear.weight here is \(1024, 256\)": changed(
        "external_mapping.cross_attn_adapter.weight", 1024, 256, 1
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_dcface_file_that_differs_is_one_error(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "dcface_3x3.ckpt"
    path.write_bytes(b"-")
    found = shapes(dcface_layout(3))
    monkeypatch.setattr(published, "read_tensors", lambda *args, **kwargs: found)
    check_foreign(weights("dcface", path), "denoiser", mixer)
    found = WRONG[reason](found)
    with pytest.raises(InputError, match=reason) as error:
        check_foreign(weights("dcface", path), "denoiser", mixer)
    message = str(error.value)
    assert message.startswith("recipe field weights.denoiser.location: ") and len(message) < 600
    assert "accepted" in message and "\n" not in message


IDIFF_WRONG = {
    "lacks middle.attn.x_proj_in.weight": without("eps_model.middle.attn."),
    "levels of .2, 2, 2, 1. blocks": without("eps_model.down.10."),
    "lacks image_proj.weight": lambda found: {"net.weight": torch.empty(1)},
    "without a place here .extra.weight": changed("eps_model.extra.weight", 1),
    "betas are not evenly spaced": lambda found: {**found, "betas": torch.rand(1000)},
}


@pytest.mark.parametrize("reason", IDIFF_WRONG)
def test_an_idiff_face_file_that_differs_is_one_error(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"-")
    found = shapes(LAYOUTS["idiff_face_ca"]) | {"betas": torch.linspace(1e-4, 0.02, 1000)}
    monkeypatch.setattr(published, "read_tensors", lambda *args, **kwargs: found)
    check_foreign(weights("idiff_face", path), "denoiser", unet)
    found = IDIFF_WRONG[reason](found)
    with pytest.raises(InputError, match=reason) as error:
        check_foreign(weights("idiff_face", path), "denoiser", unet)
    assert len(str(error.value)) < 600 and "accepted" in str(error.value)
