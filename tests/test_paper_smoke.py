"""The four papers at their own sizes: parameter counts, token shapes, one step of each kind on CPU.

Nothing at this scale can be trained here; weights a user would bring are random-init, which marks
what is made of them, and generate refuses it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import make_pool

from factory import recipe, systems
from factory.diffusion.files import RANDOM_INIT
from factory.diffusion.sampling import guided, sample_latents
from factory.diffusion.trainable import Place
from factory.plan import describe
from factory.recipe import GenerateRecipe, InputError, Sampler, TrainRecipe
from factory.seeding import seed64

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes" / "paper"
READER = "package:weights/attributes/attributes.safetensors"
COUNTS = {
    "idiff_face": {"": 216_341_187},
    "dcface": {"unet": 93_563_910, "adapter": 525_312},
    "cemiface": {"unet": 93_563_910, "similarity": 1_024, "keys": 1_049_600},
    "id3": {"context": 593_408},
}
# Where the condition enters attention: the layer, and (tokens, channels) of what it takes or makes.
TOKENS = {
    "idiff_face": ("middle.0.attention.across", 1, (32, 256)),
    "dcface": ("unet.middle.0.attention", 1, (75, 1024)),
    "cemiface": ("unet.middle.0.attention", 1, (1, 1024)),
    "id3": ("middle.0.attention.across", 1, (1, 768)),
}

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", COUNTS)
def test_a_paper_trains_and_samples_a_step(system: str, tmp_path: Path) -> None:
    path = RECIPES / "train" / f"{system}.yaml"
    named = recipe.load(path, kind="train")
    assert isinstance(named, TrainRecipe)
    size = named.image.size
    data = make_pool(tmp_path / "faces", 2, 2, size=size)
    given = {name: RANDOM_INIT for name in named.weights} | {"attributes": READER}
    overrides = [f"data.train={data}", "schedule.batch_size=2", "engine.num_gpus=0"]
    overrides.append("options.teacher_backbone=r18")  # a fresh r100, never normalised, overflows
    overrides += [f"weights.{name}.location={given[name]}" for name in named.weights]
    loaded = recipe.load(path, overrides, kind="train")
    assert isinstance(loaded, TrainRecipe)

    torch.manual_seed(seed64(loaded.seed, "weights") % 2**63)
    trained = systems.training_class(system)(loaded, Place(0, 1, tmp_path)).load()
    for name, wanted in COUNTS[system].items():
        assert count(trained.module.get_submodule(name)) == wanted, name
    shapes = []
    layer, place, tokens = TOKENS[system]
    trained.module.get_submodule(layer).register_forward_pre_hook(
        lambda module, arguments: shapes.append(tuple(arguments[place].shape[1:]))
    )

    optimizer = torch.optim.SGD(trained.module.parameters(), loaded.optimizer.lr)
    before = {name: value.detach().clone() for name, value in last(trained.module).items()}
    start = time.perf_counter()
    loss, numbers = trained.loss(trained.module.train(), next(iter(trained.batches(0, 1))))
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    assert torch.isfinite(loss) and np.isfinite(list(numbers.values())).all()
    after = last(trained.module)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert set(shapes) == {tokens}

    module = trained.module.eval()
    with torch.inference_mode():
        predict = guided(module, trained.shown(module, np.arange(1)), 1.0)
        sampler = Sampler(name="ddim", steps=1)
        made = sample_latents(predict, [5], trained.shape, trained.options.process, sampler)
    assert made.shape == (1, *trained.shape) and torch.isfinite(made).all()
    print(
        f"\n{system}: {count(module):,} parameters, {tokens[0]} condition tokens of {tokens[1]}, "
        f"training step of 2 images {seconds:.1f} s"
    )

    saved = tmp_path / "denoiser.safetensors"
    trained.save(module, saved, {"licence": "none", "random_init": ",".join(trained.random_init)})
    # The autoencoders of others that paper recipes name are looked at before any weights are.
    there = [name for name in ("denoiser", "autoencoder") if name in ("denoiser", *named.weights)]
    refused = recipe.load(
        RECIPES / "generate" / f"{system}.yaml",
        [
            *(f"weights.{name}.location={saved}" for name in there),
            *("workers.num_gpus=0", *unbanked(system)),
        ],
        kind="generate",
    )
    assert isinstance(refused, GenerateRecipe)
    with pytest.raises(InputError, match=r"random-init .*teacher.*it draws no faces"):
        systems.create(refused).load()


@pytest.mark.parametrize("system", COUNTS)
def test_the_plan_prints_the_papers_dataset(system: str) -> None:
    loaded = recipe.load(RECIPES / "generate" / f"{system}.yaml", kind="generate")
    assert isinstance(loaded, GenerateRecipe)
    identities = loaded.identities
    assert (identities.count, identities.images_each) == (10_000, 50)
    lines = describe(loaded)
    print("", *(f"{name}: {line}" for name, line in lines.items()), sep="\n")
    assert lines["images"] == "500,000" and lines["bytes"] and " to " in lines["actor-hours"]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def last(module: torch.nn.Module) -> dict[str, Any]:
    """Return the parameters of the output convolution, which every step moves."""
    return {n: p for n, p in module.named_parameters() if n.split(".")[-2] == "out" and p.ndim == 4}


def unbanked(system: str) -> list[str]:
    """Return overrides without which the recipe's bank would have to be there."""
    if system in ("dcface", "cemiface"):
        here = ["identities.source=gallery", "options.bank=null"]
        return here if system == "cemiface" else [*here, "options.styles.dataset=null"]
    return []
