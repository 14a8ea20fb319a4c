"""Autoencoders of diffusers, against what diffusers makes of the same folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from faces import make_pool
from safetensors.torch import load_file, save_file
from tiny import IDIFF, SIZE, generating, save_frozen, training

from factory.datasets.provenance import models
from factory.datasets.store import Store
from factory.diffusion import foreign
from factory.diffusion.autoencoder import KL, VQ, VQConfig
from factory.diffusion.files import load_autoencoder, load_state, read_metadata
from factory.diffusion.trainable import Place
from factory.recipe import InputError, Weights
from factory.systems.base import Position
from factory.systems.idiff_face import IDiffFace, IDiffFaceTraining

FILE = "diffusion_pytorch_model"
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def model() -> VQModel:
    torch.manual_seed(0)
    made = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=3,
        sample_size=256,
        num_vq_embeddings=20,
    )
    torch.nn.init.normal_(made.quantize.embedding.weight)  # codes that latents fall between
    return made.eval()


def written(model: VQModel, folder: Path, suffix: str = ".safetensors") -> str:
    model.save_pretrained(folder, safe_serialization=suffix == ".safetensors")
    return f"diffusers:{folder / FILE}{suffix}"


def same(found: VQ, model: VQModel) -> None:
    """Compare encoding, before quantization and unscaled, and decoding, which quantizes."""
    latents, near = model.encode(IMAGES).latents, {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.encode(IMAGES), latents, **near)
    torch.testing.assert_close(found.decode(latents), model.decode(latents).sample, **near)
    scaled = model.decode(latents / 0.18215).sample
    assert not torch.allclose(found.decode(latents), scaled, atol=1e-2)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_it_encodes_and_decodes_as_diffusers_does(
    model: VQModel, tmp_path: Path, suffix: str
) -> None:
    location = written(model, tmp_path, suffix)
    sha256 = hashlib.sha256((tmp_path / f"{FILE}{suffix}").read_bytes()).hexdigest()
    weights = Weights(location=location, sha256=sha256, licence="MIT")
    found = load_autoencoder(weights, SIZE)
    assert isinstance(found, VQ)
    assert (found.config.size, found.config.codes, found.config.widths) == (SIZE, 20, (32, 64))
    with torch.no_grad():
        same(found, model)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    (named,) = models({"autoencoder": weights})
    assert (named.location, named.sha256, named.licence) == (location, sha256, "MIT")
    with pytest.raises(InputError, match=r"weights\.autoencoder\.sha256: 0+, but"):
        load_autoencoder(Weights(location=location, sha256="0" * 64), SIZE)


def test_a_file_of_2022_names_its_attention_otherwise(model: VQModel, tmp_path: Path) -> None:
    location = written(model, tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / f"{FILE}.safetensors")
    for new, name in old.items():
        keys = [key for key in state if f".attentions.0.{new}." in key]
        assert len(keys) == 4  # weight and bias of encoder and decoder
        state |= {key.replace(f".{new}.", f".{name}."): state.pop(key) for key in keys}
    save_file(state, tmp_path / f"{FILE}.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    kept = ("_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels",
            "latent_channels", "layers_per_block", "num_vq_embeddings", "out_channels",
            "sample_size", "up_block_types")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in kept}))
    found = load_autoencoder(Weights(location=location), SIZE)
    assert isinstance(found, VQ)
    with torch.no_grad():
        same(found, VQModel.from_pretrained(tmp_path).eval())


def test_ldms_vq_f4_is_what_the_defaults_build(tmp_path: Path) -> None:
    stated = {
        "_class_name": "VQModel",
        "_diffusers_version": "0.1.2",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "in_channels": 3,
        "latent_channels": 3,
        "layers_per_block": 2,
        "num_vq_embeddings": 8192,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(stated))
    found = foreign.foreign_config(
        Weights(location=f"diffusers:{tmp_path}/{FILE}.bin"), "autoencoder"
    )
    assert found == VQConfig()
    with torch.device("meta"):
        ours, theirs = VQ(found).model, VQModel.from_config(stated)
    assert str(ours) == str(theirs)


def test_a_system_is_trained_and_samples_on_its_latents(model: VQModel, tmp_path: Path) -> None:
    data = make_pool(tmp_path / "faces", 4, 2, size=SIZE)
    files = save_frozen(tmp_path) | {"denoiser": tmp_path / "denoiser.safetensors"}
    files["autoencoder"] = Path(written(model, tmp_path / "vqvae"))
    sizes = IDIFF | {"latent_channels": 3, "latent_size": SIZE // 2}
    train = training("idiff_face", files, data, sizes)
    trained = IDiffFaceTraining(train, Place(0, 1, tmp_path)).load()
    batch = next(iter(trained.batches(0, 1)))
    assert batch.clean.shape == (8, 3, SIZE // 2, SIZE // 2)
    assert torch.isfinite(trained.loss(trained.module, batch)[0])
    trained.save(trained.module, files["denoiser"], {})
    system = IDiffFace(generating("idiff_face", files, "uniform"))
    system.load()
    contexts = system.draw_contexts([0, 1])
    places = [Position(0, 0, 0), Position(1, 0, 0)]
    images = system.sample(system.vary(contexts, places), places).images
    assert images.shape == (2, SIZE, SIZE, 3)


def test_a_vqmodel_behind_a_url_brings_its_config(model: VQModel, tmp_path: Path) -> None:
    written(model, tmp_path)
    store = Store(f"memory://{tmp_path.name}/vqvae")
    for name in (f"{FILE}.safetensors", "config.json"):
        store.put(tmp_path / name, name)
    found = load_autoencoder(Weights(location=f"diffusers:{store.url}/{FILE}.safetensors"), SIZE)
    assert isinstance(found, VQ)
    with torch.no_grad():
        same(found, model)


def changed(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            r"is of AutoencoderTiny; accepted is diffusers:FOLDER",
        ),
        ({"num_vq_embeddings": None}, "states no num_vq_embeddings; accepted is diffusers:FOLDER"),
        ({"num_vq_embeddings": "many"}, r"config\.json codes: 'many'"),
        ({"num_vq_embeddings": 21}, "does not fit the network"),
        ({"block_out_channels": [32, 64, 64]}, "does not fit the network"),
        ({"act_fn": "relu"}, r"config\.json has act_fn 'relu'; accepted is 'silu'"),
        ({"norm_num_groups": 16}, r"config\.json has norm_num_groups 16; accepted is 32"),
    ],
)
def test_a_config_of_something_else_is_one_error(
    model: VQModel, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    weights = Weights(location=written(model, tmp_path))
    changed(tmp_path, **fields)
    with pytest.raises(InputError, match=message) as caught:
        load_autoencoder(weights, SIZE)
    assert "recipe field weights.autoencoder.location" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_vqmodel_are_one_error(model: VQModel, tmp_path: Path) -> None:
    location = written(model, tmp_path)
    with pytest.raises(InputError, match=r"recipe field image\.size: 15; .* multiples of 2"):
        load_autoencoder(Weights(location=location), 15)
    with pytest.raises(InputError, match="option scale; diffusers: accepts licence=NAME"):
        load_autoencoder(Weights(location=f"{location}?scale=1"), SIZE)
    with pytest.raises(InputError, match=r"no file .*absent\.bin; accepted is"):
        load_autoencoder(Weights(location=f"diffusers:{tmp_path}/absent.bin"), SIZE)
    (tmp_path / "bad.bin").write_bytes(b"no zip")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    torch.save([1, 2], tmp_path / "list.bin")
    for name in ("bad.bin", "bad.safetensors", "list.bin"):
        with pytest.raises(InputError, match=rf"{name} holds .*; accepted is diffusers:FOLDER"):
            load_autoencoder(Weights(location=f"diffusers:{tmp_path}/{name}"), SIZE)
    with pytest.raises(InputError, match=r"weights\.start\.location: .* does not fit"):
        load_state(Weights(location=location), torch.nn.Linear(1, 1), "start")
    with pytest.raises(InputError, match=r"is of VQModel; accepted .* UNet2DConditionModel"):
        read_metadata(Weights(location=location), "denoiser", "denoiser")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        load_autoencoder(Weights(location=location), SIZE)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"no file .*config\.json; accepted is diffusers:FOLDER"):
        load_autoencoder(Weights(location=location), SIZE)


def test_stable_diffusions_autoencoder_is_scaled_and_read_under_old_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    ).eval()
    made.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / f"{FILE}.safetensors")
    for new, name in old.items():
        keys = [key for key in state if f".attentions.0.{new}." in key]
        state |= {key.replace(f".{new}.", f".{name}."): state.pop(key) for key in keys}
    torch.save(state, tmp_path / f"{FILE}.bin")
    for suffix in (".safetensors", ".bin"):
        weights = Weights(location=f"diffusers:{tmp_path / FILE}{suffix}?licence=OpenRAIL")
        found = load_autoencoder(weights, SIZE)
        assert isinstance(found, KL) and found.config.size == SIZE
        with torch.no_grad():
            latents = made.encode(IMAGES).latent_dist.mean * 0.18215
            near = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(found.encode(IMAGES), latents, **near)
            wanted = made.decode(latents / 0.18215).sample
            torch.testing.assert_close(found.decode(latents), wanted, **near)
    (named,) = models({"autoencoder": weights})
    assert named.licence == "unknown"  # the recipe's own, the stricter of the two
    changed(tmp_path, shift_factor=0.1)
    with pytest.raises(InputError, match=r"has shift_factor 0\.1; accepted is None"):
        load_autoencoder(weights, SIZE)


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_bin_is_not_run(
    model: VQModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(model, tmp_path)
    torch.save({"quant_conv.weight": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(InputError, match="holds no weights"):
        load_autoencoder(Weights(location=f"diffusers:{tmp_path}/trap.bin"), SIZE)
    assert "code ran" not in capsys.readouterr().out
