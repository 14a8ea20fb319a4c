"""Shards made by the engine's lines of stages, with the shipped weights, without Ray."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu import NAME, on_gpu, pretended_gpu
from PIL import Image

from factory.datasets.claim import write_claim
from factory.datasets.manifest import DatasetManifest, merge
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.evaluation.dataset import StoredSample, samples
from factory.generation import identities
from factory.generation.make import Line
from factory.generation.run import wiring
from factory.generation.work import Assignment, ShardWork
from factory.plan import shards
from factory.recipe import Backbone, GenerateRecipe, InputError, bank_digest, content_digest, load
from factory.recognition.backbones import make_backbone
from factory.recognition.faces import save_faces
from factory.recognition.images import decode
from factory.recognition.recognizer import Recognizer
from factory.recognition.recognizers import load_recognizer, save_recognizer
from factory.systems import create

IDIFF = Path(__file__).parents[2] / "jobs/recipes/desk/generate/idiff_face.yaml"
PLANTED = "0000001_0001"


def idiff(*overrides: str) -> GenerateRecipe:
    few = ("identities.count=2", "identities.images_each=3", "shard.identities=1")
    cheap = ("identities.source=uniform", "sampler.steps=2", "screens={max_attempts: 2}")
    cheap = (*cheap, "sampler.dtype=float32")
    recipe = load(IDIFF, [*few, *cheap, *overrides])
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def make(recipe: GenerateRecipe, folder: Path) -> tuple[DatasetManifest, dict[str, StoredSample]]:
    """Take every planned shard through the recipe's crews, one after another."""
    store, made_with, system = Store(folder), versions(), create(recipe)
    system.load()
    digest, contexts = content_digest(recipe, made_with), system.draw_contexts(range(8))
    bank = identities.empty_bank(contexts.shape[1])
    bank = identities.extend(bank, contexts, recipe.identities.count, recipe.identities.max_cosine)
    identities.save_block(store, bank, 0, bank_digest(recipe))
    write_claim(store, recipe, digest, ())
    assignment = Assignment(recipe.model_dump(mode="json"), store, digest, made_with)
    lines = [Line(assignment, crew.stages) for crew in wiring(recipe)]
    for shard in shards(recipe):
        work = ShardWork(shard)
        for line in lines:
            done = line(work)
            work = done if isinstance(done, ShardWork) else work
    manifest = merge(store, shards(recipe))
    assert verify(store) == []
    return manifest, {sample.key: sample for sample in samples(store)}


def known(folder: Path, teacher: Recognizer, sample: StoredSample) -> str:
    """Write the embedding of one image as the only known face; returns the recipe's rule."""
    face = teacher.embed(decode(sample.encoded, "planted")[None])
    path = folder / "real.safetensors"
    sha256 = save_faces(path, face, teacher.sha256)
    return (
        "screens.real_lookalike={max_cosine: 0.98, "
        f"embeddings: {{location: {path}, sha256: {sha256}}}}}"
    )


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_planted_lookalike_is_rejected_and_its_slot_made_again(
    tmp_path: Path, fused: str
) -> None:
    """The face that must not be come near is an image this very recipe makes."""
    _, before = make(idiff(), tmp_path / "before")
    teacher = load_recognizer(idiff().weights["teacher"].location)
    rule = known(tmp_path, teacher, before[PLANTED])
    manifest, after = make(idiff(rule, f"pool.fused={fused}"), tmp_path / "after")
    assert manifest.totals.reasons == {"real_lookalike": 1} and manifest.totals.kept == 6
    assert [key for key in before if before[key].encoded != after[key].encoded] == [PLANTED]
    assert after[PLANTED].sidecar["attempt"] == 1


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_shard_says_which_gpu_made_it(tmp_path: Path, fused: str) -> None:
    recipe = idiff(f"pool.fused={fused}")
    with pretended_gpu():
        made, _ = make(on_gpu(recipe), tmp_path / "gpu")
    here, _ = make(recipe, tmp_path / "cpu")
    assert made.created_with == here.created_with | {"gpu": NAME, "cuda": str(torch.version.cuda)}
    assert made.content_digest == here.content_digest


def test_a_teacher_of_another_size_sees_images_resized(tmp_path: Path) -> None:
    """As the paper's IDiff-Face does: images of 128 pixels, a teacher of 112."""
    sizes = {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "embedding_size": 128}
    backbone = Backbone(name="iresnet", **sizes)
    torch.manual_seed(0)
    weights = make_backbone(backbone, 48).state_dict()
    file = tmp_path / "teacher.safetensors"
    save_recognizer(file, weights, backbone, 48, "small", "CC0-1.0")
    recipe = idiff(f"weights.teacher={{location: {file}}}", "image.format=png")
    _, made = make(recipe, tmp_path / "made")
    bank = identities.load_bank(Store(tmp_path / "made"), bank_digest(recipe))
    assert bank is not None
    small, cosines = load_recognizer(str(file)), []
    for sample in made.values():
        with Image.open(io.BytesIO(sample.encoded)) as image:
            seen = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR))
        raw = small.embed(seen[None])[0]
        cosines.append(raw @ bank.contexts[sample.sidecar["identity"]] / np.linalg.norm(raw))
    found = [sample.sidecar["cosine"] for sample in made.values()]
    assert np.allclose(found, cosines, atol=1e-3) and np.std(found) > 0


def test_a_worker_with_other_libraries_makes_nothing(tmp_path: Path) -> None:
    """Its shards would state the versions of the driver, which did not make them."""
    stated = versions() | {"torch": "1.0"}
    assignment = Assignment(idiff().model_dump(mode="json"), Store(tmp_path), "", stated)
    with pytest.raises(InputError, match=r"torch: .* on node .*, but 1\.0"):
        Line(assignment, ("identities",))


def test_known_faces_of_another_dimension_are_refused(tmp_path: Path) -> None:
    teacher = idiff().weights["teacher"]
    sha256 = save_faces(tmp_path / "real.safetensors", np.eye(3), teacher.sha256)
    rule = f"{{location: {tmp_path / 'real.safetensors'}, sha256: {sha256}}}"
    recipe = idiff(f"screens.real_lookalike={{max_cosine: 0.5, embeddings: {rule}}}")
    assignment = Assignment(recipe.model_dump(mode="json"), Store(tmp_path), "", {})
    with pytest.raises(InputError, match="dimension 3, accepted is the teacher's"):
        Line(assignment, ("screen",))
