"""What `auto` means: asked of the nodes that do the work, once, and kept from then on."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from desk import IDIFF, TRAIN, faces, recognizer
from faces import make_dataset

from factory.cluster import hardware, precision
from factory.cluster.hardware import Processor
from factory.cluster.precision import common, looks, settled
from factory.datasets.claim import kept, write_claim
from factory.datasets.store import Store
from factory.recipe import (
    FRRecipe,
    GenerateRecipe,
    InputError,
    content_digest,
    stated_precision,
)
from factory.search.book import Book
from factory.search.results import SWEEP
from factory.search.space import load_space
from factory.training import output

ROOT = Path(__file__).parents[2]
NEW, OLD = Processor("a", "Sapphire", True), Processor("b", "Milan", False)


def test_nodes_of_one_kind_decide_and_unlike_ones_are_one_error() -> None:
    assert common([NEW, NEW], "sampler.dtype") == "bfloat16"
    assert common([OLD, OLD], "sampler.dtype") == "float32"
    with pytest.raises(InputError) as caught:
        common([OLD, NEW], "sampler.dtype")
    for word in ("sampler.dtype", "auto", "Sapphire (a)", "Milan (b)", "float32 and bfloat16"):
        assert word in str(caught.value)


@pytest.mark.parametrize(("there", "chosen"), [(NEW, "bfloat16"), (OLD, "float32")])
def test_auto_says_once_what_it_came_to_and_why(
    monkeypatch: pytest.MonkeyPatch, there: Processor, chosen: str
) -> None:
    monkeypatch.setattr(precision, "looks", lambda recipe, timed: [(there, "")])
    said: list[str] = []
    assert stated_precision(settled(recognizer(), said.append)) == chosen
    (line,) = said
    assert line.startswith(f"engine.precision: auto is {chosen} here") and there.name in line


def test_a_stated_bfloat16_is_honoured_and_its_cost_named(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = "Milan of node b has no fast bfloat16: 7 times"
    monkeypatch.setattr(precision, "looks", lambda recipe, timed: [(NEW, ""), (OLD, costs)])
    asked, said = faces("sampler.dtype=bfloat16"), []
    assert settled(asked, said.append) is asked
    (line,) = said
    assert line.startswith("warning: ") and costs in line and "float32" in line


def test_float32_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "looks", None)
    asked = faces("sampler.dtype=float32")
    assert settled(asked, print) is asked


def test_a_claim_keeps_its_precision_whatever_the_recipe_finds_later(tmp_path: Path) -> None:
    for stated in ("bfloat16", "float32"):
        made, data = faces(f"sampler.dtype={stated}"), Store(tmp_path / f"faces-{stated}")
        write_claim(data, made, content_digest(made, {}), ())
        assert kept(data, faces()) == made
        trained, out = recognizer(f"engine.precision={stated}"), Store(tmp_path / f"fr-{stated}")
        output.claim(out, trained)
        assert output.kept(out, recognizer()) == trained
    assert kept(Store(tmp_path / "empty"), faces()) == faces()
    with pytest.raises(AssertionError, match="settled"):
        output.claim(Store(tmp_path / "new"), recognizer())


@pytest.mark.ray
def test_a_cluster_of_unlike_nodes_writes_nothing(
    ray_cluster,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each job that would settle it, in process: what it finds differs, and no folder is made."""
    monkeypatch.setattr(precision, "looks", lambda recipe, timed: [(NEW, ""), (OLD, "")])
    data = make_dataset(tmp_path_factory.mktemp("data") / "faces", 1, 1)
    for job, recipe, overrides in (
        ("generate", IDIFF, []),
        ("train_diffusion", TRAIN, [f"data.train={data}"]),
    ):
        given = argparse.Namespace(
            recipe=str(recipe),
            overrides=overrides,
            out=str(tmp_path / "out"),
            extend=False,
            dry_run=False,
            address="",
            tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        )
        with pytest.raises(InputError, match="nodes differ"):
            importlib.import_module(f"factory.commands.{job}").job(given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_workers_say_what_they_compute_on(ray_cluster) -> None:
    here = hardware.processor(gpu=False)
    found = looks(faces(), timed=True)
    assert [one for one, _ in found] == [here]
    assert (found[0][1] == "") is here.bfloat16


@pytest.mark.parametrize(
    ("variable", "value"), [("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "avx2")]
)
def test_a_lowered_instruction_set_is_taken_at_its_word(variable: str, value: str) -> None:
    """What the libraries will use counts, not the flags alone; on processors of both kinds."""
    code = "from factory.cluster.hardware import processor; print(processor(False).bfloat16)"
    env = os.environ | {variable: value}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert ran.stdout.strip() == "False", ran.stderr


@pytest.mark.parametrize(
    ("lowered", "amd", "intel"),
    [
        ({}, True, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True, False),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, False, False),
        ({"DNNL_MAX_CPU_ISA": "avx2_vnni_2"}, False, False),
    ],
)
def test_a_processor_that_is_fast_in_bfloat16_is_not_by_a_cap(
    monkeypatch: pytest.MonkeyPatch, lowered: dict[str, str], amd: bool, intel: bool
) -> None:
    """Zen 4 and a Xeon with AMX, whatever this one is: oneDNN calls AVX-512 alone enough."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    for name in hardware.CAPS:
        monkeypatch.delenv(name, raising=False)
    for name, value in lowered.items():
        monkeypatch.setenv(name, value)
    for vendor, amx, able in (
        ("AuthenticAMD", False, amd),
        ("GenuineIntel", True, intel),
        ("GenuineIntel", False, False),  # a hypervisor may hide AMX
    ):
        facts = {"vendor_id": vendor, "model name": "X"}
        monkeypatch.setattr(hardware, "_cpu_fact", facts.__getitem__)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert hardware.processor(gpu=False).bfloat16 is able, vendor


def test_detection_agrees_with_the_clock() -> None:
    """Where bfloat16 is called fast its convolution is no slower; elsewhere it is slower by far."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    # The quickest of several looks, in turn: a busy machine only ever makes one slower.
    looks = [[hardware._seconds(layer, x, low) for low in (True, False)] for _ in range(9)]
    low, full = (min(times) for times in zip(*looks, strict=True))
    assert (low / full < 1.4) is hardware.processor(gpu=False).bfloat16


def test_a_process_that_is_slow_in_it_says_so_once_in_its_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(hardware, "processor", lambda gpu: OLD)
    hardware.set_up(threads, False, "float32")
    assert not caplog.records
    hardware.set_up(threads, False, "bfloat16")
    (record,) = caplog.records
    assert "Milan of node b has no fast bfloat16" in record.message
    assert "times as long as in float32" in record.message
    monkeypatch.setattr(hardware, "processor", lambda gpu: NEW)
    hardware.set_up(threads, False, "bfloat16")
    assert len(caplog.records) == 1


def test_a_sweep_settles_once_and_its_folder_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def found(recipe: GenerateRecipe | FRRecipe, timed: bool) -> list[tuple[Processor, str]]:
        asked.append(recipe.kind)
        return [(OLD, "")]

    monkeypatch.setattr(precision, "looks", found)
    space, store = load_space(str(ROOT / "tune_spaces/requested_similarity.py")), Store(tmp_path)
    book = Book(store, space)
    settled_as = book.precision(2, print)
    assert settled_as == {"generate": "float32", "fr": "float32"} and asked == ["generate", "fr"]
    book.space = replace(space, precision=settled_as)
    book.claim("run", 2, {})
    trial = book.space.trial(0, space.draw(0), "pools")
    assert trial.fr.engine.precision == "float32"
    assert {recipe.sampler.dtype for recipe, _ in trial.pools.values()} == {"float32"}  # type: ignore[union-attr]
    assert Book(store, space).precision(2, print) == settled_as and len(asked) == 2
    held = json.loads(store.read(SWEEP))
    del held["precision"]
    store.write(SWEEP, json.dumps(held).encode())
    before = {"generate": "bfloat16", "fr": "bfloat16"}  # as recipes stated it before `auto`
    assert Book(store, space).precision(2, print) == before
