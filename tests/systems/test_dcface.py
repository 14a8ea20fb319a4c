"""DCFace as a system and as a training, on networks of a few thousand weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from faces import face, make_pool
from gpu import same_images, same_step
from irnet import IRNet
from students import FEW, SAMPLER, drawn, taught
from tiny import SIZE, located, save_frozen
from torch.nn import functional as F

from factory.datasets.claim import write_claim
from factory.datasets.images import contents_digest
from factory.datasets.manifest import TAR, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.diffusion.dcface import DCFaceConfig, DCFaceNet, early_features
from factory.diffusion.examples import features
from factory.diffusion.files import save_weights
from factory.diffusion.schedule import Process
from factory.diffusion.trainable import Place
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.work import Assignment
from factory.plan import shards
from factory.recipe import Backbone, GenerateRecipe, InputError, TrainRecipe, content_digest
from factory.recognition.attributes import STUDIO, AttributeNet, save_predictor
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import load_recognizer, save_recognizer
from factory.systems.base import Position
from factory.systems.dcface import DCFace, DCFaceTraining

MODEL = tiny.DCFACE
UNET, CONDITIONS = MODEL["unet"], MODEL["conditions"]
PIXELS = UNET | {"size": SIZE, "in_channels": 3, "out_channels": 6}
BACKBONE = Backbone(name="iresnet", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), embedding_size=8)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep indexes out of the home folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights that answer to their conditions: a mixer, an unconditional model, what they need."""
    folder = tmp_path_factory.mktemp("weights")
    files = save_frozen(folder)
    sha256 = load_recognizer(str(files["teacher"])).sha256
    for name, model in {"denoiser": MODEL, "unconditional": {"unet": UNET}}.items():
        network = DCFaceNet(DCFaceConfig.model_validate(model))
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, 0.0, 0.3)
        if network.has_conditions:
            torch.nn.init.ones_(network.identity.scale)
        config = {
            "system": "dcface",
            "model": model,
            "process": Process(prediction="v_prediction").model_dump(),
            "trained_with": {"autoencoder": "", "teacher": sha256},
        }
        save_weights(folder / f"{name}.safetensors", "denoiser", network, config, {})
    net, ones = AttributeNet(SIZE, len(STUDIO)), np.ones(len(STUDIO))
    save_predictor(folder / "attributes.safetensors", net, SIZE, 0.2 * ones, 2.0 * ones)
    made = ("denoiser", "unconditional", "attributes")
    return files | {name: folder / f"{name}.safetensors" for name in made}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight people of six images each."""
    return make_pool(tmp_path_factory.mktemp("people") / "data", 8, 6, size=SIZE)


def named(url: str) -> dict[str, str]:
    return {"url": url, "digest": contents_digest(Store(url))}


def generating(files: dict[str, Path], source: str = "gallery", **changes: Any) -> GenerateRecipe:
    return tiny.generating("dcface", files, source, **changes)


def loaded(recipe: GenerateRecipe) -> DCFace:
    system = DCFace(recipe)
    system.load()
    return system


PLACES = [Position(0, 0, 0), Position(0, 1, 0), Position(2, 0, 0)]


def test_contexts_are_embeddings_of_the_banks_first_images(files: dict[str, Path], dataset: str):
    system = loaded(generating(files, "bank", options={"bank": named(dataset)}))
    contexts = system.draw_contexts([3, 0])
    assert contexts.shape == (2, 8)
    assert system.bank is not None
    raw = system.teacher.embed(np.stack([system.bank.image(3), system.bank.image(0)]))
    np.testing.assert_allclose(
        contexts, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5
    )
    close = np.abs(system.bank.image(3).astype(int) - face(3, 0, SIZE)).mean()
    assert close < 8  # JPEG


@pytest.mark.parametrize("draw", ["random", "matched", "similar"])
def test_styles_and_images_are_functions_of_the_position(
    files: dict[str, Path], dataset: str, draw: str
):
    styles = {"dataset": named(dataset), "draw": draw, "candidates": 6}
    names = ("denoiser", "autoencoder", "teacher", "attributes")
    recipe = generating(files, options={"styles": styles}, weights=located(files, *names))
    system = loaded(recipe)
    contexts = system.draw_contexts([0, 0, 2])
    conditions = system.vary(contexts, PLACES)
    assert (conditions.target == 1.0).all()
    made = system.sample(conditions, PLACES)
    assert made.images.shape == (3, SIZE, SIZE, 3) and made.images.dtype == np.uint8
    again = system.sample(system.vary(contexts, PLACES), PLACES)
    np.testing.assert_array_equal(made.images, again.images)
    assert [truth["style"] for truth in made.truth] == [truth["style"] for truth in again.truth]
    alone = system.vary(contexts[1:2], PLACES[1:2])
    np.testing.assert_array_equal(alone.extras["style"], conditions.extras["style"][1:2])


def test_images_follow_both_the_identity_and_the_style(files: dict[str, Path], dataset: str):
    system = loaded(generating(files, options={"styles": {"dataset": named(dataset)}}))
    contexts = system.draw_contexts([0, 0, 2])
    conditions = system.vary(contexts, PLACES)
    images = system.sample(conditions, PLACES).images
    conditions.extras["style"][1] = np.arange(SIZE)[:, None, None] * 16
    other = system.sample(conditions, PLACES).images
    assert not np.array_equal(other[1], images[1])
    np.testing.assert_array_equal(other[0], images[0])
    conditions.extras["who"][1] = np.arange(SIZE)[None, :, None] % 2 * 255
    conditions.context[1] = system.embedded(conditions.extras["who"][1:2])[0]
    assert not np.array_equal(system.sample(conditions, PLACES).images[1], other[1])
    conditions.context[1] *= -1
    with pytest.raises(InputError, match=r"identity 0 .* twice"):
        system.sample(conditions, PLACES)


def test_a_matched_style_is_of_the_group_of_the_identity(files: dict[str, Path]):
    names = ("denoiser", "autoencoder", "teacher", "attributes")
    styles = {"draw": "matched", "candidates": 8, "people": 500, "groups": {"gender": [0.5]}}
    recipe = generating(files, options={"styles": styles}, weights=located(files, *names))
    system = loaded(recipe)
    numbers = [0, 1, 2]
    places = [Position(number, 0, 0) for number in numbers]
    images = system.identity_images(numbers)
    assert system.predictor_of is not None
    wanted = system.predictor_of.predict(images)["gender"] > 0.5
    chosen = [
        system._style(place, image, np.zeros(8))
        for place, image in zip(places, images, strict=True)
    ]
    found = [system.styles.truth(style)["gender"] > 0.5 for style in chosen]
    assert found == wanted.tolist()


def test_a_similar_style_is_the_nearest_of_those_drawn(files: dict[str, Path], dataset: str):
    styles = {"draw": "similar", "candidates": 200, "dataset": named(dataset)}
    system = loaded(generating(files, options={"styles": styles}))
    context = system.draw_contexts([1])[0]
    style = system._style(PLACES[0], system.identity_images([1])[0], context)
    every = np.stack([face(n // 6, n % 6, SIZE) for n in range(48)])
    raw = system.teacher.embed(every)
    cosines = raw @ context / np.linalg.norm(raw, axis=1)
    assert cosines[style.number] > np.sort(cosines)[-4]  # JPEG may swap neighbours


def test_faces_of_nobody_are_made_and_committed(files: dict[str, Path], tmp_path: Path):
    weights = located(files, "autoencoder", "teacher") | {
        "denoiser": {"location": str(files["unconditional"])}
    }
    sampler = {"name": "dpmsolver++", "steps": 3, "batch_size": 4, "dtype": "float32"}
    identities = {"count": 4, "images_each": 1, "source": "noise"}
    recipe = generating(files, "noise", weights=weights, sampler=sampler, identities=identities)
    assert not DCFace(recipe).banked
    store, digest = Store(tmp_path / "out"), content_digest(recipe, {})
    write_claim(store, recipe, digest, ())
    assignment = Assignment(recipe.model_dump(mode="json"), store, digest, {})
    make, commit = Maker(assignment), Committer(assignment)
    images = []
    for shard in shards(recipe):
        manifest = commit(make(shard))
        assert manifest.kept == 2
        read = list(read_tar(store.read(shard_file(manifest.name, TAR))))
        images += [parts["jpg"] for _, parts in read]
        assert all(b'"cosine": null' in parts["json"] for _, parts in read)
    assert len(set(images)) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": None}, "sampler: missing"),
        ({"options": {"bank": {"url": "x", "digest": "0" * 16}}}, "options.bank: given"),
        ({"identities": {"count": 1, "images_each": 1, "source": "bank"}}, "options.bank: missing"),
        (
            {"identities": {"count": 1, "images_each": 1, "source": "gallery", "max_cosine": 0.3}},
            "max_cosine: 0.3",
        ),
        ({"options": {"styles": {"draw": "matched"}}}, r"weights\.attributes: missing"),
        (
            {
                "identities": {"count": 1, "images_each": 1, "source": "noise"},
                "screens": {"identity_drift": {"tolerance": 0.5}},
            },
            "nobody",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(
    files: dict[str, Path], changes: dict[str, Any], named: str
):
    with pytest.raises(InputError, match=named):
        DCFace(generating(files, **changes))


def test_a_bank_too_small_is_refused(files: dict[str, Path], dataset: str):
    identities = {"count": 9, "images_each": 1, "source": "bank"}
    with pytest.raises(InputError, match=r"count: 9; the bank .* has 8"):
        DCFace(generating(files, identities=identities, options={"bank": named(dataset)})).open()


def test_weights_that_do_not_belong_are_refused(files: dict[str, Path], tmp_path: Path):
    weights = located(files, "autoencoder", "teacher") | {
        "denoiser": {"location": str(files["unconditional"])}
    }
    with pytest.raises(InputError, match="has no conditions"):
        loaded(generating(files, weights=weights))
    other = make_backbone(BACKBONE, SIZE).state_dict()
    save_recognizer(tmp_path / "t.safetensors", other, BACKBONE, SIZE, "other", "CC0-1.0")
    weights = located(files, "autoencoder", "denoiser") | {
        "teacher": {"location": str(tmp_path / "t.safetensors")}
    }
    with pytest.raises(InputError, match="trained with"):
        loaded(generating(files, weights=weights))


def training(files: dict[str, Path], data: str, **changes: Any) -> TrainRecipe:
    options: dict[str, Any] = {
        "process": {"prediction": "v_prediction"},
        "empty_context_prob": 0.2,
        "identity": {"weight": 0.05, "max_t": 1.0, "glances": False},
    }
    changes = {"options": options} | changes
    model = changes.pop("model", MODEL)
    return tiny.training("dcface", files, data, model, **changes)


def test_training_learns_and_batches_are_functions_of_the_step(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    torch.manual_seed(0)
    recipe = training(files, dataset)
    trained = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    optimizer = torch.optim.AdamW(trained.module.parameters(), 3e-3)
    batch = next(iter(trained.batches(29, 30)))
    errors = []
    for _ in range(25):
        loss, numbers = trained.loss(trained.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
    assert errors[-1] < 0.8 * errors[0]
    again = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    same = next(iter(again.batches(29, 30)))
    kept = trained.taken(batch), again.taken(same)
    assert kept[0] is not None and kept[1] is not None
    for one, other in zip(kept[0], kept[1], strict=True):
        assert torch.equal(one, other)
    halves = [
        next(iter(DCFaceTraining(recipe, Place(rank, 2, tmp_path)).load().batches(29, 30)))
        for rank in (0, 1)
    ]
    for name in ("context", "style", "seeds"):
        joined = torch.cat([half.wanted[name] for half in halves])
        assert torch.equal(joined, batch.wanted[name])
    assert trained.samples(trained.module.eval()).shape == (4, 8, SIZE, SIZE, 3)


def test_the_identity_loss_is_the_papers(files: dict[str, Path], dataset: str, tmp_path: Path):
    losses = {}
    for variant in ("interpolated", "identity", "style"):
        options = {"identity_loss": variant}
        trained = DCFaceTraining(
            training(files, dataset, options=options), Place(0, 1, tmp_path)
        ).load()
        batch = next(iter(trained.batches(0, 1)))
        seen = F.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)), dim=1)
        losses[variant] = trained.identity_loss(seen[:5], batch, torch.arange(5))
    cosine = {
        name: F.cosine_similarity(seen, batch.wanted[name], dim=1)[:5]
        for name in ("context", "style")
    }
    torch.testing.assert_close(losses["identity"], 1 - cosine["context"], atol=1e-3, rtol=0)
    torch.testing.assert_close(losses["style"], 1 - cosine["style"], atol=1e-3, rtol=0)
    gamma = batch.t[:5] / 1000
    expected = gamma * (1 - cosine["context"]) + (1 - gamma) * (1 - cosine["style"])
    torch.testing.assert_close(losses["interpolated"], expected, atol=1e-3, rtol=0)
    # The defaults are the paper's.
    assert trained.options.identity.weight == 0.05 and trained.options.identity.max_t == 1.0
    assert trained.options.near == 4 and trained.options.trim_outliers


def test_the_identity_image_is_one_of_the_nearest_and_not_the_target(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    trained = DCFaceTraining(training(files, dataset), Place(0, 1, tmp_path)).load()
    data = trained.data
    unit = data.embeddings[0].astype(np.float64)
    for label in range(8):
        rows = np.flatnonzero(data.labels == label)
        centre = unit[rows].mean(axis=0)
        order = rows[np.argsort(-(unit[rows] @ centre))]
        np.testing.assert_array_equal(trained.nearest[label], order[:4])
        for target in rows:
            shares = np.linspace(0, 0.999, 40)
            drawn = trained.identity_rows(np.full(40, target), shares)
            assert set(drawn) == set(order[:4]) - {target}
    only = training(files, dataset, options={"near": 1})
    single = DCFaceTraining(only, Place(0, 1, tmp_path)).load()
    nearest = single.nearest[:, 0]
    np.testing.assert_array_equal(single.identity_rows(nearest, np.zeros(8)), nearest)


def test_outliers_give_way_to_inliers_of_the_person(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    trained = DCFaceTraining(training(files, dataset), Place(0, 1, tmp_path)).load()
    data, cosines = trained.data, trained._centredness()
    replaced = np.flatnonzero(trained.target != np.arange(48))
    assert set(replaced) == set(np.flatnonzero(cosines < np.quantile(cosines, 0.1)))
    np.testing.assert_array_equal(data.labels[trained.target], data.labels)
    assert not set(trained.target[replaced]) & set(replaced)
    batch = next(iter(trained.batches(0, 1)))
    assert not set(batch.rows) & set(replaced)
    kept = training(files, dataset, options={"trim_outliers": False})
    assert (DCFaceTraining(kept, Place(0, 1, tmp_path)).load().target == np.arange(48)).all()


def test_conditions_are_those_of_the_two_images(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    trained = DCFaceTraining(training(files, dataset), Place(0, 1, tmp_path)).load()
    batch = next(iter(trained.batches(0, 1)))
    given = trained.taken(batch)
    assert isinstance(given, tuple)
    embedding, spatial, early, kept, lacking = given
    assert not lacking.any()
    assert kept.shape == (8, 8, 6, 6) and kept.dtype == torch.bool
    found = early_features(trained.teacher, SIZE, batch.wanted["pixels"])
    torch.testing.assert_close(early, found)
    # The target's latents are the encoding of the style image, and the teacher saw both.
    encoded = trained.autoencoder
    assert encoded is not None
    torch.testing.assert_close(
        encoded.encode(batch.wanted["pixels"]), batch.clean, atol=0.02, rtol=0.02
    )
    raw, _ = features(trained.teacher, SIZE, batch.wanted["pixels"])
    torch.testing.assert_close(F.normalize(raw, dim=1), batch.wanted["style"], atol=2e-3, rtol=0)
    torch.testing.assert_close(
        F.normalize(embedding, dim=1), batch.wanted["context"], atol=2e-3, rtol=0
    )
    assert spatial.shape == (8, 8, 1, 1)


def test_stage_one_needs_no_conditions_and_stage_two_starts_from_it(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    options = {"process": {"prediction": "v_prediction"}, "identity": {"weight": 0.0}}
    recipe = training(files, dataset, model={"unet": UNET}, options=options)
    first = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    batch = next(iter(first.batches(0, 1)))
    assert first.taken(batch) is None
    first.loss(first.module, batch)[0].backward()
    for parameter in first.module.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    first.save(first.module, tmp_path / "first.safetensors", {})
    weights = located(files, "autoencoder", "teacher")
    weights["start"] = {"location": str(tmp_path / "first.safetensors")}
    second = DCFaceTraining(training(files, dataset, weights=weights), Place(0, 1, tmp_path)).load()
    state = second.module.state_dict()
    for name, value in first.module.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-3, rtol=1e-3)
    assert any(name.startswith("style.") for name in state)


def test_an_identity_encoder_is_trained_on_pixels(
    files: dict[str, Path], dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("factory.recognition.backbones.DEPTHS", {"r18": (1, 1, 1, 1)})
    monkeypatch.setattr("factory.recognition.backbones.WIDTHS", (8, 8, 8, 8))
    backbone = Backbone(name="r18", embedding_size=8)
    start = make_backbone(backbone, SIZE)
    save_recognizer(tmp_path / "e.safetensors", start.state_dict(), backbone, SIZE, "e", "CC0-1.0")
    conditions = CONDITIONS | {"identity_encoder": "r18", "identity_size": SIZE}
    model = {"unet": PIXELS, "conditions": conditions}
    weights = located(files, "teacher")
    options = {"identity": {"weight": 0.05, "max_t": 1.0, "glances": False}}
    changes = {"model": model, "options": options}
    with pytest.raises(InputError, match=r"weights\.identity_encoder: missing"):
        DCFaceTraining(
            training(files, dataset, weights=weights, **changes), Place(0, 1, tmp_path)
        ).load()
    weights["identity_encoder"] = {"location": str(tmp_path / "e.safetensors")}
    recipe = training(files, dataset, weights=weights, **changes)
    trained = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    network = trained.module
    assert isinstance(network, DCFaceNet) and isinstance(network.encoder, torch.nn.Module)
    torch.testing.assert_close(network.encoder.state_dict(), start.state_dict())
    for parameter in network.unet.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    batch = next(iter(trained.batches(0, 1)))
    assert batch.clean.shape == (8, 3, SIZE, SIZE) and batch.given[0].shape == batch.clean.shape
    trained.loss(network.train(), batch)[0].backward()
    gradient = next(network.encoder.parameters()).grad
    assert gradient is not None and gradient.any()
    assert trained.samples(network.eval()).shape == (4, 8, SIZE, SIZE, 3)


def test_adafaces_checkpoints_are_teacher_and_identity_encoder(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    """As the paper's recipes name them: files of BGR networks, in training and generation."""
    torch.manual_seed(4)
    networks = {name: IRNet((2, 2, 2, 2), SIZE).eval() for name in ("teacher", "identity_encoder")}
    weights: dict[str, Any] = {}
    for name, network in networks.items():
        state = {f"model.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / f"{name}.ckpt")
        weights[name] = {"location": f"adaface:{tmp_path}/{name}.ckpt?channels=bgr"}
    sizes = {"embedding_size": 24, "map_channels": 512, "style_channels": 64}
    encoder = {"identity_encoder": "r18", "identity_size": SIZE}
    model = {"unet": PIXELS, "conditions": CONDITIONS | sizes | encoder}
    recipe = training(files, dataset, model=model, weights=weights)
    trained = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()

    def seen(name: str, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            unit, length = networks[name](images.flip(1))
        return unit * length

    encoder_of = trained.module.get_submodule("encoder").eval()
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        truth = seen("identity_encoder", pixels)
        torch.testing.assert_close(encoder_of(pixels), truth, atol=1e-4, rtol=1e-4)
    batch = next(iter(trained.batches(0, 1)))
    assert torch.isfinite(trained.loss(trained.module.train(), batch)[0])
    trained.save(trained.module, tmp_path / "denoiser.safetensors", {})
    given = {"teacher": weights["teacher"]}
    given["denoiser"] = {"location": str(tmp_path / "denoiser.safetensors")}
    system = loaded(generating(files, "bank", options={"bank": named(dataset)}, weights=given))
    contexts = system.draw_contexts([0, 1, 2])
    first = torch.from_numpy(system.identity_images([0, 1, 2])).permute(0, 3, 1, 2) / 127.5 - 1
    expected = F.normalize(seen("teacher", first), dim=1).numpy()
    np.testing.assert_allclose(contexts, expected, atol=1e-4)
    rows = contexts[[place.identity for place in PLACES]]
    made = system.sample(system.vary(rows, PLACES), PLACES)
    assert made.images.shape == (3, SIZE, SIZE, 3)
    weights["identity_encoder"]["sha256"] = "0" * 64
    altered = training(files, dataset, model=model, weights=weights)
    with pytest.raises(InputError, match=r"weights\.identity_encoder\.sha256"):
        DCFaceTraining(altered, Place(0, 1, tmp_path)).load()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": MODEL | {"conditions": CONDITIONS | {"learn_empty": False}}}, "learn_empty"),
        ({"model": {"unet": UNET}, "options": {}}, r"identity\.weight: 0.05"),
        ({"model": MODEL | {"conditions": CONDITIONS | {"map_size": 2}}}, "map_channels, map_size"),
        ({"model": MODEL | {"conditions": CONDITIONS | {"style_size": 9}}}, "style_size: 8, 9"),
        ({"model": MODEL | {"conditions": CONDITIONS | {"style_grid": 4}}}, "style_grid"),
        ({"model": MODEL | {"conditions": CONDITIONS | {"embedding_size": 9}}}, "9"),
    ],
)
def test_a_training_names_what_does_not_fit(
    files: dict[str, Path], dataset: str, tmp_path: Path, changes: dict[str, Any], named: str
):
    with pytest.raises(InputError, match=named):
        DCFaceTraining(training(files, dataset, **changes), Place(0, 1, tmp_path)).load()


def test_an_identity_of_one_image_is_refused(files: dict[str, Path], dataset: str, tmp_path: Path):
    recipe = training(files, dataset)
    one = recipe.data.model_copy(update={"images_each": 1})
    with pytest.raises(InputError, match="identity 0 has 1 image"):
        DCFaceTraining(recipe.model_copy(update={"data": one}), Place(0, 1, tmp_path)).load()


def test_samples_without_identity_or_style_get_its_empty_tokens(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    options = {"identity_empty_prob": 1.0, "style_empty_prob": 0.0}
    trained = DCFaceTraining(
        training(files, dataset, options=options), Place(0, 1, tmp_path)
    ).load()
    network = trained.module.eval()
    assert isinstance(network, DCFaceNet)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    batch = next(iter(trained.batches(0, 1)))
    assert batch.wanted["lacking"].tolist() == [[True, False]] * 8
    lacking = torch.tensor([[False, False], [True, False], [False, True], [True, True]] * 2)
    batch.wanted["lacking"] = lacking
    given = trained.taken(batch)
    assert isinstance(given, tuple)
    both = lacking.all(dim=1)
    x = batch.clean
    with torch.no_grad():
        made = network(x, batch.t, given)
        nothing = network(x, batch.t, None)
        whole = network(x, batch.t, given[:-1])
        other = [torch.roll(part, 1, 0) for part in given[:-1]]
        swapped = network(x, batch.t, (*other[:2], *given[2:]))  # another identity
    assert torch.allclose(made[both], nothing[both], atol=1e-5)
    full = ~lacking.any(dim=1)
    torch.testing.assert_close(made[full], whole[full])
    nobody = lacking[:, 0]
    torch.testing.assert_close(swapped[nobody], made[nobody])
    assert (swapped[~nobody] - made[~nobody]).abs().amax() > 1e-4
    seen = F.normalize(torch.randn(8, 8), dim=1)
    losses = trained.identity_loss(seen, batch, torch.arange(8))
    assert not losses[nobody].any() and losses[~nobody].all()


def test_guidance_leads_from_the_style_alone(files: dict[str, Path]):
    systems = {
        start: loaded(generating(files, options={"guidance_from": start}))
        for start in ("nothing", "style")
    }
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([500, 500])
    empty = torch.tensor([False, True])
    made = {}
    for start, system in systems.items():
        assert isinstance(system.network, DCFaceNet)
        tokens, feature = torch.randn(2, 11, 16), torch.randn(2, 128)
        with torch.no_grad():
            one, two = (
                system.denoise(x, t, (torch.cat([tokens[:, :1], styles], 1), feature), None, empty)
                for styles in (tokens[:, 1:], -tokens[:, 1:])
            )
        made[start] = (one - two).abs().amax(dim=(1, 2, 3)) > 1e-5
    assert made["nothing"].tolist() == [True, False]
    assert made["style"].tolist() == [True, True]


def test_a_student_of_two_steps_is_learned_and_sampled(
    files: dict[str, Path], dataset: str, tmp_path: Path
):
    options = {"process": {"prediction": "v_prediction"}, "few": FEW}
    weights = located(files, "autoencoder", "teacher", "denoiser")
    recipe = training(files, dataset, options=options, weights=weights)
    held = DCFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    batch = next(iter(held.batches(0, 1)))
    flips = [held.data.embeddings[:, row].astype(np.float32) for row in np.roll(batch.rows, 1)]
    for style, either in zip(batch.wanted["style"].numpy(), flips, strict=True):
        assert np.abs(either - style).max(axis=1).min() < 1e-6  # another image's, as in sampling
    few = files | {"denoiser": taught(DCFaceTraining, recipe, tmp_path)}
    styles = {"styles": {"dataset": named(dataset)}}
    system = loaded(generating(few, options=styles, sampler=SAMPLER))
    assert drawn(system).shape == (2, SIZE, SIZE, 3)


def test_a_gpu_trains_and_draws_as_a_cpu_does(files: dict[str, Path], dataset: str, tmp_path: Path):
    same_step(DCFaceTraining, training(files, dataset), tmp_path)
    names = ("denoiser", "autoencoder", "teacher", "attributes")
    styles = {"dataset": named(dataset), "draw": "matched", "candidates": 3}
    sampler = {"name": "ddpm", "steps": 3, "batch_size": 4, "dtype": "float32"}
    changes = {"options": {"styles": styles}, "sampler": sampler}
    same_images(DCFace, generating(files, weights=located(files, *names), **changes))
