"""The configurations, run and parsed as the trainers do it."""

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from factory.export.about import About


@pytest.fixture(autouse=True)
def easydict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the trainers' dependency: a dict with attributes."""

    class EasyDict(dict[str, Any]):
        __setattr__ = dict.__setitem__
        __getattr__ = dict.__getitem__

    module = ModuleType("easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    monkeypatch.delenv("DATA_ROOT", raising=False)


@pytest.mark.parametrize("network", ["r50", "r100", "mbf"])
def test_arcface_configurations(network: str, run: Callable[..., tuple[Path, About]]) -> None:
    folder, about = run("arcface_torch")
    config = runpy.run_path(str(folder / f"acme_v1_{network}.py"))["config"]
    assert Path(config.rec) == folder
    assert (config.num_classes, config.num_image) == (about.classes, about.images)
    assert config.network == network
    assert config.val_targets == ["lfw", "cfp_fp", "agedb_30"]
    assert (folder / "property").read_text() == f"{about.classes},32,32\n"


def test_a_linked_configuration_finds_the_data_and_a_copied_one_says_how(
    run: Callable[..., tuple[Path, About]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run("arcface_torch")
    configs = tmp_path / "arcface_torch" / "configs"
    configs.mkdir(parents=True)
    link = configs / "acme_v1_r50.py"
    link.symlink_to(folder / "acme_v1_r50.py")
    assert Path(runpy.run_path(str(link))["config"].rec) == folder
    link.unlink()
    shutil.copy(folder / "acme_v1_r50.py", link)
    with pytest.raises(FileNotFoundError, match="DATA_ROOT"):
        runpy.run_path(str(link))
    monkeypatch.setenv("DATA_ROOT", str(folder.parent))
    assert Path(runpy.run_path(str(link))["config"].rec) == folder


def test_cvlface_configuration(run: Callable[..., tuple[Path, About]]) -> None:
    folder, about = run("cvlface")
    config = yaml.safe_load((folder / "acme_v1.yaml").read_text())
    assert config == {
        "data_root": "${oc.env:DATA_ROOT}",
        "rec": "acme_v1",
        "color_space": "RGB",
        "num_classes": about.classes,
        "num_image": about.images,
        "repeated_sampling_cfg": None,
        "semi_sampling_cfg": None,
    }
