"""Shards made by makers and committers, most with the shipped weights, without Ray."""

import io
from pathlib import Path

import numpy as np
import pooled
import pytest
import torch
from gpu import NAME, on_gpu, pretended_gpu
from PIL import Image
from toy import SHARD, Teacher, Toy, made, maker
from toy import recipe as toy

from factory.datasets.claim import write_claim
from factory.datasets.manifest import DatasetManifest, merge
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.evaluation.dataset import StoredSample, samples
from factory.generation import identities
from factory.generation.make import Maker, sampled
from factory.generation.run import pools
from factory.generation.work import Assignment, Sample, ShardWork
from factory.plan import shards
from factory.recipe import Backbone, GenerateRecipe, InputError, bank_digest, content_digest, load
from factory.recognition.backbones import make_backbone
from factory.recognition.faces import save_faces
from factory.recognition.images import decode
from factory.recognition.recognizer import Recognizer
from factory.recognition.recognizers import load_recognizer, save_recognizer
from factory.systems import create
from factory.systems.base import Conditions, Position

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
    """Take every planned shard through the actors of the recipe's pools, one after another."""
    store, made_with, system = Store(folder), versions(), create(recipe)
    system.load()
    digest, contexts = content_digest(recipe, made_with), system.draw_contexts(range(8))
    bank = identities.empty_bank(contexts.shape[1])
    bank = identities.extend(bank, contexts, recipe.identities.count, recipe.identities.max_cosine)
    identities.save_block(store, bank, 0, bank_digest(recipe))
    write_claim(store, recipe, digest, ())
    assignment = Assignment(recipe.model_dump(mode="json"), store, digest, made_with)
    pooled.through(pools(recipe, assignment), shards(recipe))
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


@pytest.mark.parametrize("committers", [0, 1])
def test_a_planted_lookalike_is_rejected_and_its_slot_made_again(
    tmp_path: Path, committers: int
) -> None:
    """The face that must not be come near is an image this very recipe makes."""
    _, before = make(idiff(), tmp_path / "before")
    teacher = load_recognizer(idiff().weights["teacher"].location)
    rule = known(tmp_path, teacher, before[PLANTED])
    manifest, after = make(idiff(rule, f"workers.committers={committers}"), tmp_path / "after")
    assert manifest.totals.reasons == {"real_lookalike": 1} and manifest.totals.kept == 6
    assert [key for key in before if before[key].encoded != after[key].encoded] == [PLANTED]
    assert after[PLANTED].sidecar["attempt"] == 1


@pytest.mark.parametrize("committers", [0, 1])
def test_a_shard_says_which_gpu_made_it(tmp_path: Path, committers: int) -> None:
    recipe = idiff(f"workers.committers={committers}")
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


def test_screens_embed_in_the_samplers_precision(tmp_path: Path) -> None:
    kinds = ("float32", "bfloat16")
    for own, other in (kinds, kinds[::-1]):
        recipe = idiff(f"sampler.dtype={own}", "image.format=png")
        _, made = make(recipe, tmp_path / own)
        bank = identities.load_bank(Store(tmp_path / own), bank_digest(recipe))
        assert bank is not None
        images = np.stack([decode(sample.encoded, key) for key, sample in made.items()])
        contexts = bank.contexts[[sample.sidecar["identity"] for sample in made.values()]]
        found = np.array([sample.sidecar["cosine"] for sample in made.values()])
        apart = {}
        for dtype in kinds:
            raw = load_recognizer(recipe.weights["teacher"].location, dtype).embed(images)
            unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
            apart[dtype] = np.abs((unit * contexts).sum(axis=1) - found).mean()
        assert apart[own] < 0.1 * apart[other]


def test_a_worker_with_other_libraries_makes_nothing(tmp_path: Path) -> None:
    """Its shards would state the versions of the driver, which did not make them."""
    stated = versions() | {"torch": "1.0"}
    assignment = Assignment(idiff().model_dump(mode="json"), Store(tmp_path), "", stated)
    with pytest.raises(InputError, match=r"torch: .* on node .*, but 1\.0"):
        Maker(assignment)


def test_known_faces_of_another_dimension_are_refused(tmp_path: Path) -> None:
    teacher = idiff().weights["teacher"]
    sha256 = save_faces(tmp_path / "real.safetensors", np.eye(3), teacher.sha256)
    rule = f"{{location: {tmp_path / 'real.safetensors'}, sha256: {sha256}}}"
    recipe = idiff(f"screens.real_lookalike={{max_cosine: 0.5, embeddings: {rule}}}")
    assignment = Assignment(recipe.model_dump(mode="json"), Store(tmp_path), "", {})
    with pytest.raises(InputError, match="3 numbers each, the teacher's 128"):
        Maker(assignment)


def test_an_attempt_varies_samples_and_screens_what_is_missing(tmp_path: Path) -> None:
    """Attempts differ in nothing else; the second and third are of the slots that are missing."""
    recipe = toy(attempts=3, identity_drift={"tolerance": 0.5})
    drifting = maker(recipe, Teacher(bad=2), tmp_path)
    system = drifting.system
    assert isinstance(system, Toy)
    judge, judged = drifting.screen, []

    def screen(work: ShardWork, fresh: list[Sample], conditions: Conditions) -> None:
        system.calls.append(("screen", len(fresh)))
        judged.append([(s.position.identity, s.position.slot, s.position.attempt) for s in fresh])
        judge(work, fresh, conditions)

    drifting.screen = screen  # type: ignore[assignment]
    work = drifting(SHARD)
    first = [("draw", 2), ("vary", 6), ("sample", 4), ("sample", 2), ("screen", 6)]
    again = [("vary", 2), ("sample", 2), ("screen", 2)]
    assert system.calls == [*first, *again, *again], "six slots are batches of four and two"
    assert judged[1:] == [[(2, 1, n), (3, 1, n)] for n in (1, 2)]
    assert work.missing() == [] and work.kept()[2, 1].position.attempt == 2
    assert list(work.seconds) == ["identities", "styles", "render", "screen"]


def test_there_are_no_more_attempts_than_the_recipe_says(tmp_path: Path) -> None:
    drift = {"identity_drift": {"tolerance": 0.5}}
    for attempts in (1, 2):
        work = made(toy(attempts, **drift), Teacher(bad=9), tmp_path)
        assert len(work.samples) == 4 + 2 * attempts
        assert work.missing() == [(2, 1), (3, 1)]
    assert maker(toy(attempts=3), Teacher(), tmp_path).attempts == 1, "nothing rejects"


def test_batches_are_cut_from_the_plan(tmp_path: Path) -> None:
    system = Toy(toy())
    positions = [Position(2, slot, 0) for slot in range(10)]
    conditions = system.vary(system.draw_contexts([2] * 10), positions)
    found = sampled(system, conditions, positions)
    assert [sample.position for sample in found] == positions
    assert [count for name, count in system.calls if name == "sample"] == [4, 4, 2]
    assert [sample.truth for sample in found] == [{"n": slot} for slot in range(10)]


def test_what_a_maker_hands_on_holds_no_embeddings(tmp_path: Path) -> None:
    """They were for its screens; images are enough to send to a committer."""
    work = made(toy(near_duplicate={"max_cosine": 1.0}), Teacher(), tmp_path)
    assert work.embeddings == {} and len(work.kept()) == 6
