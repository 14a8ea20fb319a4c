import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from faces import face, make_pool
from gpu import GPU, pretended_gpu

from factory.datasets.store import Store
from factory.recipe import FaultError, FRRecipe, InputError, load, parse
from factory.recognition.recognizers import load_recognizer
from factory.training import recognition
from factory.training.output import RECORD, claim
from factory.training.recognition import ARCFACE_TORCH, check, finished, run
from factory.training.workers import Worker

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("data") / "a", 24, 8, size=SIZE, licence="CC-BY-4.0")


def recipe(dataset, **changes) -> FRRecipe:
    raw = {
        "kind": "fr",
        "name": "tiny",
        "seed": 5,
        "licence": "Apache-2.0",
        "image": {"size": SIZE},
        "data": {"train": dataset},
        "backbone": {
            "name": "iresnet",
            "widths": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "embedding_size": 32,
            "dropout": 0.1,
        },
        "head": {"name": "cosface", "scale": 16, "margin": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0005, "clip_norm": 5},
        "schedule": {"name": "cosine", "steps": 12, "batch_size": 16, "warmup": 0.1},
        "engine": {"name": "torch", "precision": "float32"},
        "checkpoint": {"every_steps": 5},
        "augment": ["flip", "crop"],
    }
    made = parse(raw | changes)
    assert isinstance(made, FRRecipe)
    return made


def losses(store):
    return [row["loss"] for row in json.loads(store.read(RECORD))["curve"]]


def weights(store):
    return torch.load(store.root / ARCFACE_TORCH, weights_only=True)


def genuine_and_impostor(folder, world):
    """Return cosines of pairs of people never trained on."""
    recognizer = load_recognizer(str(folder))
    images = np.stack([face(i, s, SIZE, world) for i in range(20) for s in range(4)])
    made = recognizer.embed(images)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    cosines, who = made @ made.T, np.repeat(np.arange(20), 4)
    upper = np.triu_indices(len(who), 1)
    same = (who[:, None] == who)[upper]
    return cosines[upper][same], cosines[upper][~same]


def test_learns_and_recognises_people_it_never_saw(dataset, tmp_path):
    asked = recipe(
        dataset,
        schedule={"name": "cosine", "steps": 90, "batch_size": 32, "warmup": 0.1},
        engine={"name": "torch", "precision": "bfloat16"},
    )
    run(asked, Store(tmp_path))
    curve = losses(Store(tmp_path))
    assert curve[-1] < 0.5 * curve[0]
    genuine, impostor = genuine_and_impostor(tmp_path, world=7)
    threshold = np.median(impostor)
    better = (genuine[:, None] > impostor[None]).mean()  # area under the ROC curve
    assert better > 0.85
    assert genuine.mean() > threshold


def test_interrupted_and_whole_runs_are_equal(dataset, tmp_path):
    asked = recipe(dataset)
    whole, halves = Store(tmp_path / "whole"), Store(tmp_path / "halves")
    run(asked, whole)
    run(asked, halves, stop_after=7)  # the checkpoint of step 5 is the newest
    assert finished(halves) is None
    run(asked, halves)
    assert losses(whole) == losses(halves)
    assert len(losses(whole)) == 12
    first, second = weights(whole), weights(halves)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_data_at_the_same_place_is_not_gone_on_with(tmp_path):
    data = make_pool(tmp_path / "d", 6, 4, size=SIZE)
    asked = recipe(data, schedule={"name": "cosine", "steps": 3, "batch_size": 8},
                   checkpoint={"every_steps": 1})  # fmt: skip
    whole, part = Store(tmp_path / "whole"), Store(tmp_path / "part")
    claim(whole, asked)
    record = run(asked, whole)
    assert record["content_digests"] == [f"{0:016x}"]
    run(asked, part, stop_after=1)
    shutil.rmtree(data)
    make_pool(tmp_path / "d", 6, 4, size=SIZE, world=1)
    said = r"out .*{}: was trained on 24 images of 6 .*\(content digest 0+\).* digest 0+1\) now"
    with pytest.raises(InputError, match=said.format("part")):
        run(asked, part)
    with pytest.raises(InputError, match=said.format("whole")):
        recognition.train(asked, whole.url, lambda row: None)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_gpu_trains_and_resumes_as_a_cpu_does(dataset, tmp_path, optimizer):
    head = {"name": "adaface", "scale": 16, "margin": 0.4, "sample_rate": 0.8}
    rates = {"name": optimizer, "lr": 0.01, "weight_decay": 0.0005, "clip_norm": 5}
    asked = recipe(dataset, head=head, optimizer=rates)
    whole, halves = Store(tmp_path / "whole"), Store(tmp_path / "halves")
    run(asked, whole)
    with pretended_gpu():
        run(asked, halves, Worker(device=GPU), stop_after=7)
        run(asked, halves, Worker(device=GPU))
    first, second = weights(whole), weights(halves)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_output_is_complete(dataset, tmp_path):
    asked = recipe(dataset)
    run(asked, Store(tmp_path))
    record = finished(Store(tmp_path))
    assert record is not None
    assert (record["steps"], record["images"], record["identities"]) == (12, 192, 24)
    assert record["seconds"] > 0
    assert record["images_per_second"] > 0
    own = load_recognizer(str(tmp_path))
    assert (own.name, own.size, own.dimension, own.licence) == ("tiny", SIZE, 32, "CC-BY-4.0")
    assert record["licence"] == own.licence  # the dataset's
    assert own.module is not None
    theirs = weights(Store(tmp_path))
    assert all(torch.equal(theirs[name], v) for name, v in own.module.state_dict().items())


def test_a_loss_that_is_not_finite_names_step_and_keys(dataset, tmp_path):
    asked = recipe(dataset, optimizer={"name": "sgd", "lr": 1e30}, augment=())
    with pytest.raises(FaultError, match=r"step \d: the loss is nan.*Keys of the batch: 00"):
        run(asked, Store(tmp_path))
    assert finished(Store(tmp_path)) is None


def test_missing_inputs_are_named_before_anything_is_written(dataset, tmp_path):
    nowhere = recipe(dataset, data={"train": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=r"data\.train: .*nowhere holds no committed shards"):
        recognition.train(nowhere, str(tmp_path / "out"), lambda row: None)
    unmeasured = recipe(dataset, benchmarks=str(tmp_path))
    with pytest.raises(InputError, match=r"benchmarks: .*accepted is a folder of \.bin files"):
        recognition.train(unmeasured, str(tmp_path / "out"), lambda row: None)
    assert not (tmp_path / "out").exists()


def test_another_recipes_output_is_refused(dataset, tmp_path):
    store = Store(tmp_path)
    claim(store, recipe(dataset))
    claim(store, recipe(dataset))
    free = {"name": "torch", "precision": "float32", "max_failures": 0, "num_cpus": 2}
    claim(store, recipe(dataset, engine=free, checkpoint={"every_steps": 9}))
    with pytest.raises(InputError, match=r"seed is 5 there, 6 here"):
        claim(store, recipe(dataset, seed=6))
    with pytest.raises(InputError, match=r"head\.margin is 0\.2 there, 0\.4 here"):
        claim(store, recipe(dataset, head={"name": "cosface", "scale": 16}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": ["mirror"]}, "augment: 'mirror'; accepted: blur, compression, crop, "),
        ({"image": {"size": 40}}, "image.size: 40"),
        ({"schedule": {"steps": 1, "batch_size": 1}}, "schedule.batch_size: 1"),
        (
            {"engine": {"name": "deepspeed", "workers": 3}},
            "schedule.batch_size: 16; accepted are multiples of 3",
        ),
    ],
)
def test_refusals_name_the_field(dataset, changes, message):
    with pytest.raises(InputError, match=message):
        check(recipe(dataset, **changes))


@pytest.mark.slow  # in test_killed.py, a worker is killed on the way to the same
@pytest.mark.ray
def test_ray_train_gives_what_the_loop_alone_gives(dataset, tmp_path, ray_cluster):
    asked, rows = recipe(dataset), []
    record = recognition.train(asked, str(tmp_path / "ray"), rows.append)
    assert record["steps"] == 12
    assert [row["step"] for row in rows] == list(range(1, 13))
    run(asked, Store(tmp_path / "plain"))
    assert losses(Store(tmp_path / "ray")) == losses(Store(tmp_path / "plain"))
    again = recognition.train(asked, str(tmp_path / "ray"), rows.append)
    assert again == record
    assert len(rows) == 12


@pytest.mark.slow
@pytest.mark.ray
def test_a_fault_in_a_worker_reaches_the_user(dataset, tmp_path, ray_cluster):
    asked = recipe(dataset, image={"size": 48})
    with pytest.raises(InputError, match=r"is 32x32 pixels, image.size accepts 48x48"):
        recognition.train(asked, str(tmp_path), lambda row: None)


def deepspeed(dataset, workers, stage, steps=12) -> FRRecipe:
    engine = {
        "name": "deepspeed",
        "workers": workers,
        "precision": "float32",
        "max_failures": 0,
        "deepspeed": {"zero_stage": stage, "accumulation_steps": 2},
    }
    schedule = {"name": "cosine", "steps": steps, "batch_size": 16, "warmup": 0.1}
    return recipe(dataset, engine=engine, schedule=schedule)


@pytest.fixture(scope="module")  # DeepSpeed remembers the first group it saw
def alone_in_its_group(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("LOCAL_RANK", "0")
        file = tmp_path_factory.mktemp("group") / "file"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{file}", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()


def test_deepspeed_resumes_where_it_was(dataset, tmp_path, alone_in_its_group):
    asked = deepspeed(dataset, 1, 1)
    whole, halves = Store(tmp_path / "whole"), Store(tmp_path / "halves")
    run(asked, whole)
    run(asked, halves, stop_after=7)
    run(asked, halves)
    assert losses(halves) == pytest.approx(losses(whole))
    assert len(losses(whole)) == 12


def test_recomputed_blocks_keep_weights_and_statistics(dataset, tmp_path):
    def trained(folder, again):
        engine = {"name": "torch", "precision": "float32"}
        engine |= {"deepspeed": {"activation_checkpointing": again}}
        backbone = {"name": "iresnet", "widths": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        run(recipe(dataset, engine=engine, backbone=backbone), Store(folder))
        return weights(Store(folder))

    once, again = trained(tmp_path / "once", False), trained(tmp_path / "again", True)
    assert once["layer2.0.bn2.running_mean"].abs().max() > 0
    for name, value in once.items():
        assert torch.allclose(value.float(), again[name].float(), atol=1e-4), name


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("jobs/recipes/*/fr/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_recipes_are_accepted(path):
    asked = load(path, kind="fr")
    assert isinstance(asked, FRRecipe)
    check(asked)
