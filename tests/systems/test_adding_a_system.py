"""The worked example of docs/adding-a-system.md, trained and sampled as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import make_pool
from tiny import ADM, DIMENSION, SIZE, generating, save_frozen, training

from factory import systems
from factory.datasets.compose import compose
from factory.datasets.store import Store
from factory.diffusion.trainable import Place
from factory.recipe import ComposeRecipe, InputError, parse
from factory.systems.base import Position

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-system.md"
MODEL = {"unet": ADM, "context_size": DIMENSION}


@pytest.fixture
def posed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the page's code where systems are looked for."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    folder = tmp_path / "systems"
    folder.mkdir()
    (folder / "posed.py").write_text(code)
    monkeypatch.setattr(systems, "__path__", [*systems.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "factory.systems.posed", raising=False)


def test_the_example_is_a_system_trains_and_generates(posed: None, tmp_path: Path) -> None:
    assert "posed" in systems.names()
    files = save_frozen(tmp_path) | {"denoiser": tmp_path / "denoiser.safetensors"}
    data = make_pool(
        tmp_path / "people", 4, 3, size=SIZE, truth=lambda identity, slot: {"yaw": 20.0 * slot - 20}
    )
    recipe = training("posed", files, data, MODEL)
    mixed = Store(tmp_path / "mixed")
    pools = {"people": {"url": data}}
    view = parse({"kind": "compose", "name": "mix", "seed": 1, "pools": pools})
    assert isinstance(view, ComposeRecipe)
    compose(view, mixed)
    with pytest.raises(InputError, match=r"data\.train: .*mixed is a composition"):
        of_mixed = training("posed", files, mixed.url, MODEL)
        systems.training_class("posed")(of_mixed, Place(0, 1, tmp_path)).load()
    trained = systems.training_class("posed")(recipe, Place(0, 1, tmp_path)).load()
    optimizer = torch.optim.AdamW(trained.module.parameters(), 3e-3)
    errors = []
    for batch in [next(iter(trained.batches(0, 1)))] * 8:
        loss, numbers = trained.loss(trained.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
    assert errors[-1] < errors[0]
    trained.save(trained.module, files["denoiser"], {"licence": "CC0-1.0"})

    system = systems.create(generating("posed", files, "uniform", options={"widest": 30.0}))
    system.load()
    contexts = system.draw_contexts([0, 1])
    places = [Position(0, 0, 0), Position(1, 2, 1)]
    made = system.sample(system.vary(contexts, places), places)
    assert made.images.shape == (2, SIZE, SIZE, 3) and made.images.dtype == np.uint8
    yaw = [one["asked_yaw"] for one in made.truth]
    assert yaw[0] != yaw[1] and max(map(abs, yaw)) <= 30.0
    with pytest.raises(InputError, match="widest"):
        systems.create(generating("posed", files, "uniform", options={"widest": 100.0}))
    sampler = {"name": "ddim", "steps": 2, "guidance_scale": 2.0, "batch_size": 2}
    guided = {"sampler": sampler | {"dtype": "float32"}}
    with pytest.raises(InputError, match="no learned empty context"):
        systems.create(generating("posed", files, "uniform", **guided)).load()
