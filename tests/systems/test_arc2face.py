"""Arc2Face on tiny networks of its classes, against diffusers' own pipeline and transformers."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooled
import pytest
import ready
import scrfd
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from faces import make_pool
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from factory.datasets.claim import write_claim
from factory.datasets.images import contents_digest
from factory.datasets.manifest import merge
from factory.datasets.provenance import models, sha256_file, versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.diffusion.autoencoder import KL, KLConfig
from factory.diffusion.clip import TextConfig, TextEncoder
from factory.diffusion.sampling import draw_noise, sample_latents
from factory.diffusion.schedule import Noising, Process, make_scheduler
from factory.diffusion.stable import PROCESS, StableConfig, StableUNet
from factory.generation import identities
from factory.generation.run import pools
from factory.generation.work import Assignment
from factory.plan import shards
from factory.recipe import GenerateRecipe, InputError, Sampler, bank_digest, content_digest
from factory.systems import names, training_class
from factory.systems.arc2face import Arc2Face, Prompt
from factory.systems.base import Position
from factory.systems.contexts import unit

SIZE, WIDTH, PLACES, DIMENSION = tiny.SIZE, 64, 12, tiny.DIMENSION
SENTENCE = "photo of a id person"
SD = {  # the scheduler's file of Stable Diffusion 1.5
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SOLVER = {"name": "dpmsolver++", "steps": 5, "spacing": "even"}
DDIM = {"name": "ddim", "steps": 5, "spacing": "leading", "offset": 1}
COMMON = {"guidance_scale": 3.0, "batch_size": 2, "dtype": "float32"}
NAMES = {
    "denoiser": "diffusers:{}/arc2face/diffusion_pytorch_model.safetensors",
    "encoder": "transformers:{}/encoder/model.safetensors",
    "autoencoder": "diffusers:{}/vae/diffusion_pytorch_model.safetensors",
    "teacher": "{}/teacher.safetensors",
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1400000000\n"


def tokenizer() -> CLIPTokenizer:
    """Make CLIP's tokenizer for a vocabulary that holds the words of the prompt and little else."""
    merges: list[tuple[str, str]] = []
    tokens = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    for word in SENTENCE.replace(" a ", " ").split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        tokens += [part for part in parts if part not in tokens]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=PLACES)


@pytest.fixture(scope="module")
def words() -> CLIPTokenizer:
    return tokenizer()


@pytest.fixture(scope="module")
def prompt(words: CLIPTokenizer) -> dict[str, Any]:
    """Return the prompt's ids as the tokenizer has them."""
    ids = words(SENTENCE).input_ids
    assert len(ids) == 7
    return {"start": ids[0], "words": ids[1:-1], "person": ids[4], "end": ids[-1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, words: CLIPTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(7)
    UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        sample_size=8,
    ).save_pretrained(folder / "arc2face")
    AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=PLACES,
            initializer_factor=8.0,  # so that another token makes another state
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).save_pretrained(folder / "encoder")
    tiny.save_frozen(folder)
    return folder


def recipe(folder: Path, prompt: dict[str, Any], source: str = "uniform", **changes: Any) -> Any:
    options = {"embedding_size": DIMENSION, "prompt": prompt, "bank_size": SIZE}
    changes["options"] = options | changes.get("options", {})
    weights = {name: {"location": place.format(folder)} for name, place in NAMES.items()}
    given = {"weights": weights, "sampler": SOLVER | COMMON} | changes
    files = dict.fromkeys(("denoiser", "autoencoder", "teacher"), folder)
    return tiny.generating("arc2face", files, source, **given)


def loaded(made: GenerateRecipe) -> Arc2Face:
    system = Arc2Face(made)
    system.load()
    return system


@pytest.fixture(scope="module")
def system(folder: Path, prompt: dict[str, Any]) -> Arc2Face:
    return loaded(recipe(folder, prompt))


def test_sizes_are_those_of_the_published_networks() -> None:
    """What `sum(p.numel())` says of Stable Diffusion 1.5's three networks."""
    with torch.device("meta"):
        made = StableUNet(StableConfig()), KL(KLConfig()), TextEncoder(TextConfig())
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in made]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_the_noise_process_and_the_steps_are_stable_diffusions() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(Noising(PROCESS).kept, np.cumprod(1 - betas), rtol=1e-4)
    assert "schedule" not in Process().model_dump()  # files of weights keep their bytes
    assert Process.model_validate(PROCESS.model_dump()) == PROCESS
    for kind, fields in ((DPMSolverMultistepScheduler, SOLVER), (DDIMScheduler, DDIM)):
        theirs = kind.from_config(SD)
        theirs.set_timesteps(25)
        ours = make_scheduler(PROCESS, Sampler(**{**fields, "steps": 25}))
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.timesteps[0] == 961 and ours.timesteps[-1] == 1
    with pytest.raises(ValueError, match="with name ddim and spacing null it must be 0"):
        Sampler(name="ddim", steps=5, offset=1)


def test_the_prompt_is_what_the_tokenizer_makes(
    words: CLIPTokenizer, prompt: dict[str, Any]
) -> None:
    held = Prompt(**prompt)
    for text, ids in ((SENTENCE, held.words), ("", ())):
        padded = words(text, padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(held.filled(PLACES, ids), padded)
    assert words.convert_ids_to_tokens(held.filled(PLACES, held.words)[0])[held.place] == "id</w>"
    published = Prompt().filled(77, Prompt().words)[0].tolist()
    assert published == [49406, 1125, 539, 320, 1014, 2533] + [49407] * 71
    with pytest.raises(ValueError, match="person is 5, words have it 2 times"):
        Prompt(words=(5, 5), person=5)


def test_the_vector_stands_in_the_table_for_the_id(system: Arc2Face, folder: Path) -> None:
    """A table whose row of `id` is the padded vector, read by the model's own plain forward."""
    contexts = system.draw_contexts([0, 1])
    found = system.tokens(torch.from_numpy(contexts))
    assert found.shape == (2, PLACES, WIDTH)
    held = system.options.prompt
    for context, states in zip(contexts, found, strict=True):
        model = CLIPTextModel.from_pretrained(folder / "encoder").eval()
        table = model.get_input_embeddings().weight
        with torch.no_grad():
            table[held.person] = torch.from_numpy(np.pad(context, (0, WIDTH - DIMENSION)))
            wanted = model(held.filled(PLACES, held.words)).last_hidden_state[0]
        torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    plain = system.encoder(system.ids)  # the hook is gone
    with torch.no_grad():
        model = CLIPTextModel.from_pretrained(folder / "encoder").eval()
        torch.testing.assert_close(plain, model(system.ids).last_hidden_state)


@pytest.mark.parametrize(
    ("scheduler", "fields"), [(DPMSolverMultistepScheduler, SOLVER), (DDIMScheduler, DDIM)]
)
def test_images_are_those_of_the_pipeline_of_diffusers(
    scheduler: Any, fields: dict[str, Any], folder: Path, prompt: dict[str, Any], words: Any
) -> None:
    """The pipeline encodes the empty prompt, guides, steps, scales and decodes by itself."""
    system = loaded(recipe(folder, prompt, sampler=fields | COMMON))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "encoder"),
        tokenizer=words,
        unet=UNet2DConditionModel.from_pretrained(folder / "arc2face"),
        scheduler=scheduler.from_config(SD),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    places = [Position(0, 0, 0), Position(1, 2, 0)]
    conditions = system.vary(system.draw_contexts([0, 1]), places)
    seeds = [place.seed(system.recipe.seed) for place in places]
    tokens = system.tokens(torch.from_numpy(conditions.context))
    given: dict[str, Any] = {
        "prompt_embeds": tokens,
        "latents": draw_noise(seeds, system.shape, 0),
        "num_inference_steps": fields["steps"],
        "guidance_scale": COMMON["guidance_scale"],
        "height": SIZE,
        "width": SIZE,
    }
    wanted = pipeline(**given, output_type="latent").images
    with torch.no_grad():
        predict = system.predictor(tokens, system.sampler)
        found = sample_latents(predict, seeds, system.shape, system.process, system.sampler)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    given["latents"] = draw_noise(seeds, system.shape, 0)
    pixels = pipeline(**given, output_type="np").images * 255
    images = system.sample(conditions, places).images
    assert images.shape == (2, SIZE, SIZE, 3) and images.std() > 10
    assert np.abs(images - pixels).max() < 1.0
    assert (images[0] != images[1]).any()


def test_an_encoder_as_the_authors_store_it_is_the_same(
    folder: Path, prompt: dict[str, Any], system: Arc2Face, tmp_path: Path
) -> None:
    """A pickled file of an older transformers: other names, and a counter among the tensors."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = CLIPTextModel.from_pretrained(folder / "encoder").state_dict()
    old = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(PLACES)[None]
    torch.save(old, tmp_path / "encoder" / "pytorch_model.bin")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    made = recipe(tmp_path, prompt)
    weights = {name: part.model_dump() for name, part in made.weights.items()}
    weights["encoder"] = {"location": f"transformers:{tmp_path}/encoder/pytorch_model.bin"}
    other = loaded(recipe(tmp_path, prompt, weights=weights))
    contexts = torch.from_numpy(system.draw_contexts([3, 4]))
    assert torch.equal(other.tokens(contexts), system.tokens(contexts))


def test_identities_come_from_a_bank_a_file_and_the_sphere(
    folder: Path, prompt: dict[str, Any], system: Arc2Face, tmp_path: Path
) -> None:
    data = make_pool(tmp_path / "people", 4, 2, size=SIZE)
    digest = contents_digest(Store(data))
    large = {"image": {"size": 2 * SIZE}}  # the bank's images have a size of their own
    named = {"options": {"bank": {"url": data, "digest": digest}}}
    made = loaded(recipe(folder, prompt, "bank", **large, **named))
    assert made.shape == (4, SIZE, SIZE)
    first = np.stack([made.identity_images([n])[0] for n in (0, 1)])
    embedded = unit(made.teacher.embed(first))
    np.testing.assert_allclose(made.draw_contexts([0, 1]), embedded, atol=1e-5)
    vectors = {f"id{n}": torch.randn(DIMENSION) for n in range(4)}
    torch.save(vectors, tmp_path / "contexts.npy")
    file = {"url": str(tmp_path / "contexts.npy")}
    file["digest"] = sha256_file(tmp_path / "contexts.npy")[:16]
    made = loaded(recipe(folder, prompt, "file", options={"contexts": file}))
    wanted = torch.nn.functional.normalize(torch.stack(list(vectors.values())))
    np.testing.assert_allclose(made.draw_contexts([0, 1, 2, 3]), wanted, atol=1e-6)
    assert np.linalg.norm(system.draw_contexts([0, 1]), axis=1) == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"options\.contexts: missing"):
        Arc2Face(recipe(folder, prompt, "file"))


def test_an_identity_varies_by_noise_and_where_asked_by_its_embedding(
    folder: Path, prompt: dict[str, Any], system: Arc2Face
) -> None:
    places = [Position(0, slot, 0) for slot in range(2)]
    contexts = system.draw_contexts([0, 0])
    plain = system.vary(contexts, places)
    assert np.array_equal(plain.context, contexts) and plain.target.tolist() == [1.0, 1.0]
    turned = loaded(recipe(folder, prompt, options={"perturb": {"lb": 0.5}}))
    turned.meet(contexts[:1])
    conditions = turned.vary(contexts, places)
    drawn = conditions.extras["drawn"]
    np.testing.assert_allclose((drawn * contexts).sum(1), conditions.target, atol=1e-5)
    assert ((conditions.target >= 0.5) & (conditions.target < 1.0)).all()
    made = turned.sample(conditions, places)
    assert [one["v"] for one in made.truth] == pytest.approx(conditions.target.tolist(), abs=1e-6)
    assert (made.images != system.sample(plain, places).images).any()


def generated(made: GenerateRecipe, folder: Path, backwards: bool) -> dict[str, str]:
    """Take every shard through the actors of the recipe's pools; return the sha256 of the tars."""
    store, made_with = Store(folder), versions(made.weights)
    system, digest = loaded(made), content_digest(made, made_with)
    bank = identities.empty_bank(DIMENSION)
    bank = identities.extend(bank, system.draw_contexts(range(8)), made.identities.count, 1.0)
    identities.save_block(store, bank, 0, bank_digest(made))
    write_claim(store, made, digest, (), None, models(made.weights))
    assignment = Assignment(made.model_dump(mode="json"), store, digest, made_with)
    planned = list(shards(made))
    pooled.through(pools(made, assignment), reversed(planned) if backwards else planned)
    manifest = merge(store, planned)
    assert verify(store) == [] and manifest.totals.kept == 12
    assert {model.name for model in manifest.models} == set(NAMES)
    assert manifest.created_with["transformers"]
    return {path.name: sha256_file(path) for path in folder.glob("shards/*.tar")}


def test_the_same_bytes_however_the_work_is_spread(
    folder: Path, prompt: dict[str, Any], tmp_path: Path
) -> None:
    first = generated(recipe(folder, prompt), tmp_path / "one", False)
    spread = recipe(folder, prompt, workers={"max": 1, "committers": 1})
    assert first == generated(spread, tmp_path / "two", True) and len(first) == 2


def test_without_the_extra_one_error_says_how_to_install_it(
    folder: Path, prompt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        InputError, match=r"transformers is not installed; pip install 'face-data-factory\[arc2face"
    ):
        Arc2Face(recipe(folder, prompt)).open()


def changed(part: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


UNET, TEXT, VAE = "arc2face/diffusion_pytorch_model", "encoder/model", "vae/diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda f: (f / "arc2face/config.json").unlink(), "denoiser", r"no file .*config\.json"),
        (lambda f: (f / "encoder/config.json").unlink(), "encoder", r"no file .*config\.json"),
        (lambda f: (f / "vae/config.json").unlink(), "autoencoder", r"no file .*config\.json"),
        (written("arc2face/config.json", POINTER), "denoiser", "is not JSON"),
        (written(f"{UNET}.safetensors", POINTER), "denoiser", "is a Git-LFS pointer"),
        (written(f"{TEXT}.safetensors", POINTER), "encoder", "is a Git-LFS pointer"),
        (written(f"{VAE}.safetensors", POINTER), "autoencoder", "is a Git-LFS pointer"),
        (changed("arc2face", _class_name="VQModel"), "denoiser", "is of VQModel; accepted is diff"),
        (changed("vae", _class_name="UNet1DModel"), "autoencoder", "is of UNet1DModel; accepted"),
        (changed("encoder", model_type="bert"), "encoder", "is of bert; accepted is transformers:"),
        (changed("arc2face", attention_head_dim=4), "denoiser", "attention_head_dim 4; accepted"),
        (changed("arc2face", new_field=1), "denoiser", "has new_field 1, which is not known here"),
        (changed("arc2face", down_block_types=["A"]), "denoiser", r"down_block_types \['A'\]"),
        (changed("arc2face", cross_attention_dim=32), "denoiser", "does not fit the network"),
        (changed("encoder", hidden_act="gelu"), "encoder", "hidden_act 'gelu'; accepted is 'quick"),
        (changed("encoder", num_hidden_layers=3), "encoder", "does not fit the network"),
        (changed("encoder", num_attention_heads=2), "encoder", "num_attention_heads 2; accepted"),
        (changed("vae", scaling_factor=0.13025), "autoencoder", "scaling_factor 0.13025; accepted"),
    ],
)
def test_a_wrong_folder_is_one_error(
    change: Callable[[Path], None],
    field: str,
    message: str,
    folder: Path,
    prompt: dict[str, Any],
    tmp_path: Path,
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        loaded(recipe(tmp_path, prompt))
    assert f"recipe field weights.{field}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_networks_that_do_not_fit_together_are_one_error(
    folder: Path, prompt: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=32,
    ).save_pretrained(tmp_path)
    made = recipe(folder, prompt)
    weights = {name: {"location": part.location} for name, part in made.weights.items()}
    narrow = {"location": f"diffusers:{tmp_path}/diffusion_pytorch_model.safetensors"}
    with pytest.raises(
        InputError, match=r"states of 64; the denoiser's cross_attention_dim acc.* 32"
    ):
        loaded(recipe(folder, prompt, weights=weights | {"denoiser": narrow}))
    ours = {"location": str(folder / "autoencoder.safetensors")}
    with pytest.raises(InputError, match="accepted is an AutoencoderKL of 4 latent channels"):
        loaded(recipe(folder, prompt, weights=weights | {"autoencoder": ours}))
    with pytest.raises(InputError, match=r"encoder\.location: .*; accepted is transformers:FOLDER"):
        loaded(recipe(folder, prompt, weights=weights | {"encoder": narrow}))
    with pytest.raises(InputError, match=r"weights\.encoder: missing; arc2face needs it"):
        Arc2Face(
            recipe(folder, prompt, weights={k: v for k, v in weights.items() if k != "encoder"})
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": {}}, r"prompt\.start: 49406; the vocabulary .* accepts ids below \d+"),
        ({"prompt": {"person": 7}}, "person is 7, words have it 0 times"),
        ({"embedding_size": 512}, "embedding_size: 512; the encoder's tokens accept 64"),
        ({"embedding_size": 9}, r"teacher\.location: embeddings of 8; the denoiser accepts 9"),
    ],
)
def test_options_that_do_not_fit_the_networks(
    options: dict[str, Any], message: str, folder: Path, prompt: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=message):
        loaded(recipe(folder, prompt, options=options))


def test_it_trains_nothing_and_has_no_order_of_torchs_noise(
    folder: Path, prompt: dict[str, Any]
) -> None:
    assert "arc2face" in names() and not {"inliers", "context_file"} & set(names())
    with pytest.raises(InputError, match="'arc2face' trains nothing; accepted: cemiface, dcface"):
        training_class("arc2face")
    with pytest.raises(InputError, match=r"sampler\.noise: torch; arc2face accepts position"):
        Arc2Face(recipe(folder, prompt, sampler=SOLVER | COMMON | {"noise": "torch"}))


@pytest.mark.ray
@pytest.mark.slow
def test_from_the_published_recipe_to_small_aligned_faces(
    folder: Path, prompt: dict[str, Any], tmp_path: Path
) -> None:
    """Generate, align with a detector, export for CVLface: the landmarks are each face's own."""
    sets: dict[str, Any] = {
        f"weights.{name}.location": place.format(folder) for name, place in NAMES.items()
    }
    data = make_pool(tmp_path / "people", 2, 1, size=SIZE)
    sets |= {
        "options.bank.url": data,
        "options.bank.digest": contents_digest(Store(data)),
        "options.bank_size": SIZE,
        "options.embedding_size": DIMENSION,
        "options.prompt": json.dumps(prompt),
        "image.size": SIZE,
        "identities.count": 2,
        "identities.images_each": 2,
        "sampler.batch_size": 2,
        "sampler.dtype": "float32",
        "workers.num_gpus": 0,
        "workers.num_cpus": 1,
        "workers.committers": 0,
    }
    words = ["jobs/generate.py", "jobs/recipes/published/arc2face.yaml", "--out", tmp_path / "out"]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    for field, value in sets.items():
        words += ["--set", f"{field}={value}"]
    done = ready.run(*words)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    licences = {model["name"]: model["licence"] for model in manifest["models"]}
    assert licences == {
        **{"denoiser": "MIT", "encoder": "MIT", "autoencoder": "OpenRAIL"},
        "teacher": "unknown",
    }
    assert manifest["totals"]["kept"] == 4 and manifest["licence"] == "unknown"
    detector = scrfd.write_detector(tmp_path / "det.onnx")
    done = ready.run(
        *("jobs/prepare.py", tmp_path / "out", "--out", tmp_path / "aligned"),
        *("--licence", "OpenRAIL", "--align", "--detector", detector),
    )
    assert done.returncode == 0, done.stderr
    done = ready.run(
        "jobs/export.py", tmp_path / "aligned", "--format", "cvlface", "--to", tmp_path / "kit"
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "kit" / "README.md").read_text()
    assert sha256_file(folder / "encoder" / "model.safetensors") in card and "MIT" in card
    rows = (tmp_path / "kit" / "ldmk_5points.csv").read_text().splitlines()[1:]
    assert len(rows) == 4 and "0.341916" not in rows[0]  # the template's first
