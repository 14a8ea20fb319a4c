"""What no change of the code may change by itself: digests of recipes, and the bytes of shards.

`tests/golden.json` keeps them. Bytes depend on the arithmetic of the processor's libraries, so each
recording is kept under a fingerprint of that arithmetic; all of it is held to AVX2, which every
x86 machine of today has.

    python tests/test_golden.py     # records this machine's arithmetic, where a change is wanted
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.generation.commit import Committer
from factory.generation.work import KEEP, Assignment, Sample, ShardWork
from factory.plan import Shard
from factory.recipe import (
    BankRecipe,
    GenerateRecipe,
    bank_digest,
    content_digest,
    load,
    with_precision,
)
from factory.systems.base import Position

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden.json")
RECIPES = ROOT / "jobs/recipes"
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
}
SMALL = ("identities.count=4", "identities.images_each=3", "shard.identities=2")
SAMPLED = (*SMALL, "sampler.steps=2", "sampler.dtype=float32", "identities.max_cosine=1")
REFILLED = (*SAMPLED, "screens.identity_drift.tolerance=0.1", "screens.max_attempts=3")
SPLIT = ("workers.committers=1", "workers.num_cpus=0.25", "workers.committer_num_cpus=0.25")
CASES = {
    "studio": ("studio", SMALL),
    "studio_plain": ("studio_plain", SMALL),
    "idiff_face": ("idiff_face", SAMPLED),
    "dcface": ("dcface", SAMPLED),
    "id3": ("id3", SAMPLED),
    "cemiface": ("cemiface", SAMPLED),
    "refills": ("idiff_face", REFILLED),
    "refills, split": ("idiff_face", (*REFILLED, *SPLIT)),
}
FAST = ("studio",)


def digests() -> dict[str, list[str]]:
    """Return content and bank digest of every shipped recipe that makes images."""
    found = {}
    for path in sorted(RECIPES.rglob("*.yaml")):
        recipe = load(path)
        made = recipe.generate if isinstance(recipe, BankRecipe) else recipe
        if isinstance(made, GenerateRecipe):
            made = with_precision(made, "float32")
            pair = [content_digest(made, {"factory": "any"}), bank_digest(made)]
            found[path.relative_to(RECIPES).as_posix()] = pair
    return found


def fingerprint() -> str:
    """Return 16 hex digits of what this process's arithmetic makes of fixed numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(2, 64, 16, 16)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    wide = layer(x.contiguous(memory_format=torch.channels_last)) + layer(x)
    tokens = torch.nn.functional.silu(wide).flatten(2).transpose(1, 2)
    shown = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    shown = torch.nn.functional.group_norm(shown.transpose(1, 2), 8).exp()
    draws = np.random.default_rng(0).standard_normal((64, 64))
    numbers = np.sin(draws @ draws) * np.arctan2(draws, 1.5) ** 3
    image = (np.abs(draws[:48, :48, None] * np.ones(3)) * 80).astype(np.uint8)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95, colorspace="RGB")
    named = shown.detach().numpy().tobytes() + numbers.tobytes() + encoded
    return hashlib.sha256(named).hexdigest()[:16]


def this_arithmetic() -> str:
    """Return the fingerprint of a process that is held to AVX2."""
    asked = [sys.executable, "-c", "import test_golden; print(test_golden.fingerprint())"]
    environment = {**os.environ, **AVX2, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    return subprocess.run(
        asked, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def tars(name: str, folder: Path) -> dict[str, str]:
    """Generate a case as a user would; return the sha256 of every tar.

    Every sidecar states the content digest, which follows the version of the factory and of its
    libraries; zeros stand for it.
    """
    recipe, sets = CASES[name]
    words = [sys.executable, "jobs/generate.py", str(RECIPES / f"desk/generate/{recipe}.yaml")]
    words += ["--out", str(folder / "made"), "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    for override in sets:
        words += ["--set", override]
    environment = {**os.environ, **AVX2}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stated = json.loads((folder / "made/manifest.json").read_text())["content_digest"].encode()
    return {
        path.name: hashlib.sha256(path.read_bytes().replace(stated, b"0" * 16)).hexdigest()
        for path in sorted((folder / "made/shards").glob("*.tar"))
    }


def test_no_digest_has_changed() -> None:
    assert digests() == json.loads(GOLDEN.read_text())["digests"]


def committed(folder: Path) -> str:
    """Return the sha256 of a tar of images that are whole numbers, whatever the processor."""
    recipe = load("desk/generate/studio.yaml", [*SMALL, "image.size=32"])
    made_with = versions()
    assignment = Assignment(recipe.model_dump(mode="json"), Store(folder), "0" * 16, made_with)
    work = ShardWork(Shard(0, 2, 0, 3))
    ramp = np.arange(32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3)
    for identity, slot in work.shard.slots:
        image = (ramp * (7 + identity) // (3 + slot) % 256).astype(np.uint8)
        verdict = KEEP if slot else "identity_drift"
        position = Position(identity, slot, 0)
        work.samples.append(Sample(position, image, {"yaw": 0.5}, 0.25, verdict, 0.25))
    return Committer(assignment)(work).sha256


def test_what_is_committed_is_the_same_on_every_processor(tmp_path: Path) -> None:
    assert committed(tmp_path) == json.loads(GOLDEN.read_text())["committed"]


@pytest.mark.ray
@pytest.mark.parametrize(
    "name", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_no_byte_has_changed(name: str, tmp_path: Path) -> None:
    arithmetic = this_arithmetic()
    recorded = json.loads(GOLDEN.read_text())["tars"].get(arithmetic, {})
    if name not in recorded:
        pytest.skip(
            f"no bytes of {name} are recorded for this processor's arithmetic ({arithmetic}); "
            "python tests/test_golden.py records them"
        )
    assert tars(name, tmp_path) == recorded[name]


def test_a_split_run_with_refills_is_recorded_as_the_fused_one() -> None:
    recorded = json.loads(GOLDEN.read_text())["tars"].values()
    with_refills = [made for made in recorded if "refills" in made]
    assert with_refills
    for made in with_refills:
        assert made["refills"] == made["refills, split"] and made["refills"] != made["idiff_face"]


if __name__ == "__main__":
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"tars": {}}
    kept["digests"] = digests()
    with tempfile.TemporaryDirectory() as scratch:
        kept["committed"] = committed(Path(scratch))
    made = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            made[case] = tars(case, Path(scratch))
        print(case, *made[case].values(), flush=True)
    kept["tars"][this_arithmetic()] = made
    GOLDEN.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
