"""IDiff-Face as a system and as a training, on networks of a few thousand weights."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import same_images, same_step
from PIL import Image
from students import SAMPLER, drawn, learned
from tiny import IDIFF, SIZE, located, save_idiff

from factory.datasets.claim import write_claim
from factory.datasets.manifest import ShardManifest, commit_shard, merge
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store
from factory.datasets.tar import write_tar
from factory.diffusion.files import load_denoiser, save_weights
from factory.diffusion.trainable import Place
from factory.diffusion.unet import UNet, UNetConfig
from factory.generation.run import check_sources
from factory.recipe import GenerateRecipe, InputError, TrainRecipe, Weights, content_digest, parse
from factory.seeding import generator, seed64
from factory.systems.base import Position
from factory.systems.idiff_face import IDiffFace, IDiffFaceTraining


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a denoiser that answers to its context, an autoencoder and a teacher."""
    return save_idiff(tmp_path_factory.mktemp("weights"))


def generating(files: dict[str, Path], **changes: Any) -> GenerateRecipe:
    raw: dict[str, Any] = {
        "kind": "generate",
        "name": "small",
        "seed": 5,
        "system": "idiff_face",
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "identities": {"count": 4, "images_each": 3, "source": "uniform"},
        "shard": {"identities": 2},
        "workers": {"max": 1},
        "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
        "weights": located(files),
        "sampler": {
            "name": "dpmsolver++",
            "steps": 4,
            "guidance_scale": 2.0,
            "batch_size": 4,
            "dtype": "float32",
        },
    }
    recipe = parse(raw | changes)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def loaded(recipe: GenerateRecipe) -> IDiffFace:
    system = IDiffFace(recipe)
    system.load()
    return system


@pytest.mark.parametrize("source", ["uniform", "two_stage", "gallery"])
def test_contexts_are_unit_vectors_and_functions_of_the_index(
    files: dict[str, Path], source: str
) -> None:
    identities = {"count": 4, "images_each": 3, "source": source}
    system = loaded(generating(files, identities=identities))
    together = system.draw_contexts([0, 1, 2, 3, 4])
    assert together.dtype == np.float32 and together.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(system.draw_contexts([3]), together[3:4], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-6


def test_uniform_contexts_have_no_direction(files: dict[str, Path]) -> None:
    drawn = loaded(generating(files)).draw_contexts(range(2000))
    assert np.abs(drawn.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1 / 8, atol=0.02)


def test_images_depend_on_position_and_context_not_on_neighbours(files: dict[str, Path]) -> None:
    system = loaded(generating(files))
    contexts = system.draw_contexts([0, 1, 2])
    places = [Position(0, 0, 0), Position(1, 0, 0), Position(2, 0, 0)]
    conditions = system.vary(contexts, places)
    assert (conditions.target == 1.0).all() and system.one_sided
    np.testing.assert_array_equal(conditions.context, contexts)
    images = system.sample(conditions, places).images
    assert images.shape == (3, SIZE, SIZE, 3) and images.dtype == np.uint8
    again = system.sample(conditions, places).images
    np.testing.assert_array_equal(images, again)
    others = [Position(9, 4, 0), Position(1, 0, 0), Position(8, 2, 1)]
    beside = system.sample(system.vary(contexts[[2, 1, 0]], others), others).images
    assert np.abs(beside[1].astype(int) - images[1]).max() <= 1
    assert np.abs(beside[0].astype(int) - images[0]).max() > 1


@pytest.mark.parametrize("among", [4, None])
def test_a_perturbed_image_has_a_context_of_its_own_cosine(
    files: dict[str, Path], among: int | None
) -> None:
    system = loaded(generating(files, options={"perturb": {"lb": 0.2, "among": among}}))
    contexts = system.draw_contexts(range(4))
    (remark,) = system.remarks(contexts)
    assert f"raised for {4 if among else 0} of 4" in remark
    places = [Position(identity, slot, 0) for identity in range(4) for slot in range(50)]
    rows = [place.identity for place in places]
    conditions = system.vary(contexts[rows], places)
    drawn = conditions.extras["drawn"]
    np.testing.assert_array_equal(conditions.context, contexts[rows])
    np.testing.assert_allclose(
        (drawn * contexts[rows]).sum(axis=1), conditions.target, rtol=0, atol=1e-6
    )
    nearest = (contexts @ contexts.T - 2 * np.eye(4)).max(axis=1)
    lower = np.cos(np.arccos(nearest) / 2)[rows] if among else np.full(200, 0.2)
    assert (conditions.target >= lower - 1e-6).all() and (conditions.target <= 1).all()
    assert (conditions.target < lower + 0.5 * (1 - lower)).mean() == pytest.approx(0.5, abs=0.12)
    alone = system.vary(contexts[[2]], [places[120]])
    np.testing.assert_array_equal(alone.extras["drawn"], drawn[[120]])
    made = system.sample(alone, [places[120]])
    assert made.truth == [{"v": round(float(conditions.target[120]), 6)}]
    plain = alone.__class__(alone.context, alone.target)
    assert (system.sample(plain, [places[120]]).images != made.images).any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"options": {"perturb": {"lb": 0.6, "among": 5}}},
            "identities.count, 4, or be left out",
        ),
        ({"sampler": None}, "sampler: missing"),
        ({"weights": {}}, r"weights\.denoiser: missing"),
        ({"identities": {"count": 1, "images_each": 1, "source": "moon"}}, "'moon'"),
        ({"identities": {"count": 1, "images_each": 1, "source": "bank"}}, "bank: missing"),
        ({"options": {"cpd_rate": 0.1}}, "cpd_rate"),
        ({"sampler": {"name": "ddpm", "steps": 4, "eta": 0.5}}, "eta"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(
    files: dict[str, Path], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        IDiffFace(generating(files, **changes))


def test_weights_that_do_not_belong_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    swapped = located(files) | {"denoiser": {"location": str(files["autoencoder"])}}
    with pytest.raises(InputError, match=r"accepted is 'face-data-factory/denoiser'"):
        loaded(generating(files, weights=swapped))
    wrong = located(files)
    wrong["denoiser"]["sha256"] = "0" * 64
    with pytest.raises(InputError, match="sha256"):
        loaded(generating(files, weights=wrong))
    with pytest.raises(InputError, match=r"image\.size"):
        loaded(generating(files, image={"size": 32}))
    unet, config = load_denoiser(
        Weights(location=str(files["denoiser"])),
        lambda config: UNet(UNetConfig.model_validate(config["model"])),
    )
    smoke = tmp_path / "smoke.safetensors"
    save_weights(smoke, "denoiser", unet, config, {"random_init": "teacher"})
    marked = located(files) | {"denoiser": {"location": str(smoke)}}
    with pytest.raises(InputError, match="random-init teacher"):
        loaded(generating(files, weights=marked))


def test_weights_behind_urls_draw_the_same_images(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store, weights = Store(f"memory://{tmp_path.name}"), {}
    for name, path in files.items():
        store.put(path, path.name)
        weights[name] = {"location": f"{store.url}/{path.name}", "sha256": sha256_file(path)}
    here, there = generating(files), generating(files, weights=weights)
    assert check_sources(there) is None
    place = [Position(0, 0, 0)]
    made = []
    for system in (loaded(here), loaded(there)):
        conditions = system.vary(system.draw_contexts([0]), place)
        made.append(system.sample(conditions, place).images)
    np.testing.assert_array_equal(*made)
    for name in weights:
        wrong = weights | {name: weights[name] | {"sha256": "0" * 64}}
        for opened in (check_sources, loaded):
            with pytest.raises(InputError, match=rf"weights\.{name}\.sha256: 0+, but memory://"):
                opened(generating(files, weights=wrong))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> str:
    """Eight people, four images each: a colour a person, and noise."""
    folder = tmp_path_factory.mktemp("people")
    store = Store(str(folder / "data"))
    studio = {"system": "studio", "weights": {}, "sampler": None}
    identities = {"count": 8, "images_each": 4, "source": "train"}
    recipe = generating(files, **studio, identities=identities, shard={"identities": 8})
    made = content_digest(recipe, {})
    write_claim(store, recipe, made, ())
    from factory.plan import shards

    shard = next(iter(shards(recipe)))

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for identity, slot in shard.slots:
            draws = generator(seed64(1, "people", identity, slot))
            colour = generator(seed64(1, "colour", identity)).integers(40, 215, 3)
            image = colour + draws.normal(0, 12, (SIZE, SIZE, 3))
            buffer = io.BytesIO()
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(buffer, "PNG")
            label = str(identity).encode()
            parts = {"png": buffer.getvalue(), "cls": label, "json": b"{}"}
            yield f"{identity:07d}_{slot:04d}", parts

    tar, rejects = folder / "shard.tar", folder / "rejects.parquet"
    sha256, size = write_tar(tar, samples())
    rejects.write_bytes(b"")
    manifest = ShardManifest(
        name=shard.name,
        sha256=sha256,
        bytes=size,
        planned=32,
        kept=32,
        reasons={},
        missing=(),
        seconds={},
        content_digest=made,
        system="studio",
        versions={},
        rejects_sha256="0" * 64,
    )
    commit_shard(store, tar, rejects, manifest)
    merge(store, [shard])
    return store.url


def training(files: dict[str, Path], data: str, **changes: Any) -> TrainRecipe:
    raw: dict[str, Any] = {
        "kind": "train",
        "name": "small",
        "seed": 3,
        "system": "idiff_face",
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "data": {"train": data},
        "model": IDIFF,
        "weights": located(files, "autoencoder", "teacher"),
        "options": {
            "process": {"prediction": "v_prediction"},
            "empty_context_prob": 0.2,
            "other_image_prob": 0.5,
            "min_snr_gamma": 5.0,
            "identity": {"weight": 0.1, "max_t": 0.6, "after": 0.5},
        },
        "optimizer": {"name": "adamw", "lr": 0.003},
        "schedule": {"name": "constant", "steps": 60, "batch_size": 8},
        "ema": 0.9,
        "engine": {"name": "torch", "precision": "float32"},
        "checkpoint": {"every_steps": 30},
    }
    recipe = parse(raw | changes)
    assert isinstance(recipe, TrainRecipe)
    return recipe


def test_training_learns_and_batches_are_functions_of_the_step(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recipe = training(files, dataset)
    trained = IDiffFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    optimizer = torch.optim.AdamW(trained.module.parameters(), 3e-3)
    before, after = (next(iter(trained.batches(step, step + 1))) for step in (29, 30))
    assert before.looks is None and after.looks is not None
    assert len(after.looks) == 4
    identity = recipe.options["identity"] | {"glances": False}
    plain = training(files, dataset, options=recipe.options | {"identity": identity})
    bare = next(iter(IDiffFaceTraining(plain, Place(0, 1, tmp_path)).load().batches(30, 31)))
    assert bare.looks == () and torch.equal(bare.noise, after.noise)
    errors = []
    for batch in [after] + [before] * 30 + [after]:
        loss, numbers = trained.loss(trained.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
        assert ("cosine" in numbers) == (batch is after)
    assert errors[-2] < 0.8 * errors[1]
    again = IDiffFaceTraining(recipe, Place(0, 1, tmp_path)).load()
    first = next(iter(trained.batches(41, 42)))
    second = next(iter(again.batches(41, 42)))
    for name in ("clean", "noise", "t", "keep", "empty"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first.given[0], second.given[0])
    assert len({int(v) * 8 // 1000 for v in first.t}) == 8  # one of each eighth of the process
    halves = [
        next(iter(IDiffFaceTraining(recipe, Place(rank, 2, tmp_path)).load().batches(41, 42)))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([half.noise for half in halves]), first.noise)
    sheet = trained.samples(trained.module.eval())
    assert sheet.shape == (4, 8, SIZE, SIZE, 3)


def test_contexts_come_from_the_same_person(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    options = {"other_image_prob": 1.0}
    held = IDiffFaceTraining(
        training(files, dataset, options=options), Place(0, 1, tmp_path)
    ).load()
    labels, table = held.data.labels, held.data.embeddings.astype(np.float32)
    for label in range(8):
        rows = held.data.peers[held.data.first[label] : held.data.first[label + 1]]
        assert (labels[rows] == label).all() and len(rows) == 4
    batch = next(iter(held.batches(0, 1)))
    for clean, context in zip(batch.clean, batch.given[0], strict=True):
        image = np.abs(held.data.latents.astype(np.float32) - clean.numpy()).sum((2, 3, 4))
        source = np.abs(table - context.numpy()).sum(2)
        image_row = np.unravel_index(image.argmin(), image.shape)
        source_row = np.unravel_index(source.argmin(), source.shape)
        assert labels[image_row[1]] == labels[source_row[1]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": IDIFF | {"learn_empty_context": False}}, "empty_context_prob is 0.2"),
        ({"model": IDIFF | {"context_size": 9}}, "context_size: 9"),
        ({"model": IDIFF | {"latent_size": 8}}, "autoencoder makes"),
        ({"model": IDIFF | {"colour": 1}}, r"model\.colour: unknown"),
        ({"weights": {}}, r"weights\.autoencoder: missing"),
        ({"image": {"size": 32}}, r"image\.size: 32"),
    ],
)
def test_a_training_names_what_does_not_fit(
    files: dict[str, Path], dataset: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        IDiffFaceTraining(training(files, dataset, **changes), Place(0, 1, tmp_path)).load()


def test_a_gpu_trains_and_draws_as_a_cpu_does(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    options = {"process": {}, "empty_context_prob": 0.2, "identity": {"weight": 0.1}}
    same_step(IDiffFaceTraining, training(files, dataset, options=options), tmp_path)
    identities = {"count": 4, "images_each": 3, "source": "two_stage"}
    same_images(IDiffFace, generating(files, identities=identities))


def test_the_examples_are_not_made_in_silence(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    said: list[str] = []
    for _ in range(2):  # the second time they lie in the cache
        IDiffFaceTraining(training(files, dataset), Place(0, 1, tmp_path, said.append)).load()
    assert said and said[0].startswith("examples 0/") and len(set(said)) == len(said)


def student(files: dict[str, Path], data: str, **few: Any) -> TrainRecipe:
    options = {"process": {"prediction": "v_prediction"}, "empty_context_prob": 0.2}
    options["few"] = {"steps": 2, "guidance_scale": 1.5, "teacher_steps": 4} | few
    weights = located(files, "autoencoder", "teacher", "denoiser")
    return training(files, data, options=options, weights=weights)


@pytest.mark.parametrize("batches", [0, 3])
def test_a_student_learns_where_its_teacher_goes(
    files: dict[str, Path],
    dataset: str,
    tmp_path: Path,
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = IDiffFaceTraining(student(files, dataset, batches=batches), Place(0, 1, tmp_path))
    trained.load()
    asked = []
    teach = trained.followed.forward
    monkeypatch.setattr(
        trained.followed, "forward", lambda *a, **k: (asked.append(1), teach(*a, **k))[1]
    )
    errors = learned(trained)
    # Four steps of the teacher to the end, each with and without context.
    assert len(asked) == 8 * (batches or 60)
    again, first = (next(iter(trained.batches(at, at + 1))) for at in (63, 0))
    assert torch.equal(again.noise, first.noise) == bool(batches)
    if batches:  # its rows learn the other segment
        assert (
            set(again.t.tolist()) == set(first.t.tolist()) == set(trained.segments.starts.tolist())
        )
        assert not (again.t == first.t).any()
        assert np.mean(errors[-3:]) < 0.3 * np.mean(errors[:3])
    trained.save(trained.module.eval(), tmp_path / "few.safetensors", {"licence": "CC0-1.0"})
    few = files | {"denoiser": tmp_path / "few.safetensors"}
    system = loaded(generating(few, weights=located(few), sampler=SAMPLER))
    made = drawn(system)
    assert made.shape == (2, SIZE, SIZE, 3) and made.std() > 1
    with pytest.raises(InputError, match="has learned ddim of 2 steps"):
        loaded(generating(few, weights=located(few)))
    with pytest.raises(InputError, match="a student of 2 steps itself"):
        IDiffFaceTraining(student(few, dataset), Place(0, 1, tmp_path)).load()


def test_a_students_contexts_are_turned_as_those_of_sampling(
    files: dict[str, Path], dataset: str, tmp_path: Path
) -> None:
    def contexts(**options: Any) -> torch.Tensor:
        told = {"process": {"prediction": "v_prediction"}, "few": {"steps": 2}} | options
        weights = located(files, "autoencoder", "teacher", "denoiser")
        recipe = training(files, dataset, options=told, weights=weights)
        trained = IDiffFaceTraining(recipe, Place(0, 1, tmp_path)).load()
        return torch.cat([batch.given[0] for batch in trained.batches(0, 40)])

    as_they_are, turned = contexts(), contexts(lb=0.7)
    assert torch.allclose(turned.norm(dim=1), torch.ones(len(turned)), atol=1e-5)
    cosines = (as_they_are * turned).sum(dim=1)
    assert 0.7 < float(cosines.min()) < 0.75 and 0.95 < float(cosines.max()) <= 1.0
    assert abs(float(cosines.mean()) - 0.85) < 0.02


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"few": {"steps": 2}, "min_snr_gamma": 5.0}}, "min_snr_gamma: 5; with"),
        (
            {"options": {"few": {"steps": 2}, "identity": {"weight": 0.5}}},
            "identity.weight: 0.5; with options.few accepted is 0",
        ),
        ({"options": {"few": {"steps": 5}}}, "teacher_steps is 12, accepted is a multiple"),
        ({"options": {"lb": 0.7}}, "options.lb: 0.7; without options.few accepted is 1"),
        ({"options": {"few": {}}}, r"weights\.denoiser: missing"),
    ],
)
def test_a_distillation_names_what_does_not_fit(
    files: dict[str, Path], dataset: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        IDiffFaceTraining(training(files, dataset, **changes), Place(0, 1, tmp_path)).load()
