"""The diffusion training loop: resuming changes nothing, Ray changes nothing, outputs are kept."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
from faces import make_pool
from gpu import GPU, on_gpu, pretended_gpu

from factory.datasets.store import Store
from factory.diffusion.files import load_autoencoder
from factory.recipe import FaultError, InputError, TrainRecipe, Weights, canonical, parse
from factory.training import checkpoint, diffusion
from factory.training.average import Average
from factory.training.output import RECIPE, check_output
from factory.training.workers import Worker

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_pool(tmp_path_factory.mktemp("data") / "a", 12, 4, size=SIZE, licence="CC-BY-4.0")


def recipe(dataset: str, **changes: Any) -> TrainRecipe:
    raw: dict[str, Any] = {
        "kind": "train",
        "name": "tiny",
        "seed": 5,
        "system": "autoencoder",
        "licence": "Apache-2.0",
        "image": {"size": SIZE},
        "data": {"train": dataset},
        "model": {
            "size": SIZE,
            "widths": [16, 16],
            "encoder_blocks": [1, 1],
            "decoder_blocks": [1, 1],
        },
        "optimizer": {"name": "adamw", "lr": 0.003, "clip_norm": 1.0},
        "schedule": {"name": "cosine", "steps": 12, "batch_size": 8, "warmup": 0.1},
        "ema": 0.9,
        "engine": {"name": "torch", "precision": "float32"},
        "checkpoint": {"every_steps": 5},
    }
    made = parse(raw | changes)
    assert isinstance(made, TrainRecipe)
    return made


def weights(out: Path) -> dict[str, torch.Tensor]:
    with safe_open(out / "autoencoder.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first | second)


def losses(summary: dict[str, Any]) -> list[float]:
    return [row["loss"] for row in summary["curve"]]


def test_interrupted_and_whole_trainings_are_equal(dataset: str, tmp_path: Path) -> None:
    asked = recipe(dataset)
    whole = diffusion.run(asked, Store(str(tmp_path / "whole")))
    part = Store(str(tmp_path / "part"))
    unfinished = diffusion.run(asked, part, max_steps=7)
    assert unfinished["steps"] == 7 and checkpoint.latest(part) == 7
    assert not same(tmp_path / "whole", tmp_path / "part")
    again = diffusion.run(asked, part)
    assert same(tmp_path / "whole", tmp_path / "part")
    assert losses(again) == losses(whole) and len(losses(whole)) == 12


def test_other_data_at_the_same_place_is_not_gone_on_with(tmp_path: Path) -> None:
    data = make_pool(tmp_path / "d", 4, 4, size=SIZE)
    asked, store = recipe(data), Store(tmp_path / "part")
    store.write(RECIPE, canonical(asked).encode())
    diffusion.run(asked, store, max_steps=1)
    check_output(store, asked)
    shutil.rmtree(data)
    make_pool(tmp_path / "d", 5, 4, size=SIZE)  # as --extend leaves it
    for again in (diffusion.run, lambda recipe, store: check_output(store, recipe)):
        with pytest.raises(InputError, match=r"16 images of 4 .* gives 20 images of 5"):
            again(asked, store)


def test_a_gpu_trains_and_resumes_as_a_cpu_does(dataset: str, tmp_path: Path) -> None:
    asked = recipe(dataset)
    whole = diffusion.run(asked, Store(tmp_path / "cpu" / "whole"))
    halves = Store(tmp_path / "gpu" / "halves")
    with pretended_gpu():
        diffusion.run(on_gpu(asked), halves, Worker(device=GPU), max_steps=7)
        resumed = diffusion.run(on_gpu(asked), halves, Worker(device=GPU))
    assert losses(resumed) == losses(whole)


def test_what_is_kept(dataset: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    summary = diffusion.run(recipe(dataset), store)
    assert summary == json.loads(store.read("training.json"))
    assert summary["steps"] == summary["total"] == 12
    assert checkpoint.steps(store) == [10, 12]
    assert (tmp_path / "samples" / "000000012.png").is_file()
    with safe_open(tmp_path / "autoencoder.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["licence"] == summary["licence"] == "CC-BY-4.0"  # the dataset's
    assert facts["steps"] == "12/12"
    assert facts["recipe"] == canonical(recipe(dataset))
    network = load_autoencoder(Weights(location=str(tmp_path / "autoencoder.safetensors")), SIZE)
    assert network.encode(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 4, SIZE // 4, SIZE // 4)


def test_a_second_stage_continues_from_weights(dataset: str, tmp_path: Path) -> None:
    diffusion.run(recipe(dataset), Store(str(tmp_path / "first")))
    start = {"start": {"location": str(tmp_path / "first" / "autoencoder.safetensors")}}
    options = {"freeze_encoder": True}
    second = recipe(dataset, name="second", weights=start, options=options)
    diffusion.run(second, Store(str(tmp_path / "second")))
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name, value in before.items():
        if name.startswith(("encoder.", "normalize.running")):
            torch.testing.assert_close(after[name], value, msg=name)
    assert not torch.equal(before["decoder.0.weight"], after["decoder.0.weight"])


def test_the_average_follows_the_power_schedule() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average, expected = Average(module.state_dict(), 0.6), float(module.weight)
    for step in range(6):
        with torch.no_grad():
            module.weight.fill_(step)
        decay = min(0.6, 1.0 - (1.0 + step) ** -0.75)
        expected = decay * expected + (1.0 - decay) * step
        average.update(module.state_dict(), step)
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_another_recipes_output_is_refused(dataset: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(RECIPE, canonical(recipe(dataset)).encode())
    check_output(store, recipe(dataset, checkpoint={"every_steps": 1}))
    with pytest.raises(InputError, match="seed is 5 there, 6 here"):
        check_output(store, recipe(dataset, seed=6))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"system": "moon"}, "'moon'"),
        ({"system": "studio"}, "trains nothing"),
        ({"model": {"size": 64}}, r"model\.size: 64"),
        ({"model": {"kind": "vae"}}, "'vae'"),
        ({"options": {"identity": 0.1}}, r"weights\.teacher: missing"),
        ({"options": {"freeze_encoder": True}}, r"weights\.start: missing"),
        ({"options": {"sharp": 1}}, "sharp: unknown"),
    ],
)
def test_mistakes_are_named(
    dataset: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        diffusion.run(recipe(dataset, **changes), Store(str(tmp_path)))


def test_a_loss_that_is_not_finite_names_step_and_keys(dataset: str, tmp_path: Path) -> None:
    asked = recipe(dataset, optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(FaultError, match=r"step \d+: the .* is (nan|inf).*Keys of the batch: 0"):
        diffusion.run(asked, Store(str(tmp_path)))


def test_recomputation_changes_nothing(dataset: str, tmp_path: Path) -> None:
    settings = {"activation_checkpointing": True}
    engine = {"name": "torch", "precision": "float32", "deepspeed": settings}
    summary = diffusion.run(recipe(dataset, engine=engine), Store(str(tmp_path / "again")))
    whole = diffusion.run(recipe(dataset), Store(str(tmp_path / "once")))
    assert losses(summary) == pytest.approx(losses(whole), rel=1e-5)


class Silent:
    """Takes the place of an MLflow run."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

        self.files: list[str] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def artifact(self, path: Path, folder: str) -> None:
        self.files.append(f"{folder}/{path.name}")


@pytest.mark.ray
def test_ray_train_gives_what_the_loop_alone_gives(
    dataset: str, tmp_path: Path, ray_cluster: None
) -> None:
    asked, tracked = recipe(dataset), Silent()
    summary = diffusion.train(asked, str(tmp_path / "ray"), tracked)  # type: ignore[arg-type]
    assert summary["steps"] == 12
    assert [step for step, _ in tracked.rows] == list(range(1, 13))
    logged = {"loss", "lr", "gradient_norm", "images_per_second", "data_wait", "memory_gb"}
    assert logged <= tracked.rows[-1][1].keys()
    assert tracked.files == ["samples/000000012.png"]
    diffusion.run(asked, Store(str(tmp_path / "plain")))
    assert same(tmp_path / "ray", tmp_path / "plain")


@pytest.mark.slow  # test_workers.py has how it is handed over
@pytest.mark.ray
def test_a_mistake_found_in_a_worker_reaches_the_user(
    dataset: str, tmp_path: Path, ray_cluster: None
) -> None:
    asked = recipe(dataset, image={"size": 64}, model={"size": 64})
    with pytest.raises(InputError, match="32x32"):
        diffusion.train(asked, str(tmp_path), Silent())  # type: ignore[arg-type]
