import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from factory.datasets import provenance
from factory.datasets.store import Store
from factory.recipe import GenerateRecipe, InputError, Weights, content_digest, load, local_path

IDIFF = Path(__file__).parents[2] / "jobs/recipes/desk/generate/idiff_face.yaml"


def test_sha256_file(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x" * 3_000_000)
    assert provenance.sha256_file(file) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["Apache-2.0", "MIT"], "Apache-2.0"),
        (["Apache-2.0", "CC-BY-NC-4.0", "CC0-1.0"], "CC-BY-NC-4.0"),
        (["Apache-2.0", "unknown"], "unknown"),
        (["Apache-2.0", "Acme Faces EULA", "proprietary"], "Acme Faces EULA AND proprietary"),
        (["own", "unknown"], "own AND unknown"),
        (["CC-BY-NC-4.0 AND own", "unknown", "MIT"], "own AND unknown"),
        (["Beta terms", "MIT", "Acme terms"], "Acme terms AND Beta terms"),
        ([], "unknown"),
    ],
)
def test_strictest(licences, expected):
    assert provenance.strictest(licences) == expected
    assert provenance.strictest(reversed(licences)) == expected


def test_models_are_hashed_and_compared(tmp_path):
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    good = Weights(location=str(file), sha256=sha256, licence="MIT")
    (model,) = provenance.models({"teacher": good})
    assert (model.name, model.sha256, model.licence) == ("teacher", sha256, "MIT")
    with pytest.raises(InputError, match=r"weights\.teacher\.sha256.*accepted"):
        provenance.models({"teacher": Weights(location=str(file), sha256="0" * 64)})
    with pytest.raises(InputError, match=r"weights\.teacher\.location: no file"):
        provenance.models({"teacher": Weights(location=str(tmp_path / "none"))})


def test_weights_without_a_sha256_are_named_by_their_bytes(tmp_path):
    file, stated = tmp_path / "denoiser.safetensors", hashlib.sha256(b"elsewhere").hexdigest()
    recipe = load(IDIFF, ["sampler.dtype=float32"])
    assert isinstance(recipe, GenerateRecipe)
    weights = {
        "denoiser": Weights(location=str(file), licence="MIT"),
        "teacher": Weights(location=str(tmp_path / "none"), sha256=stated),
    }
    open_recipe = recipe.model_copy(update={"weights": weights})
    digests = set()
    for content in (b"first", b"second"):
        file.write_bytes(content)
        made = provenance.pinned(open_recipe)
        assert made.weights["denoiser"].sha256 == hashlib.sha256(content).hexdigest()
        assert made.weights["teacher"] == weights["teacher"]  # what is stated is not read
        digests.add(content_digest(made, {}))
    assert len(digests) == 2
    file.unlink()
    with pytest.raises(InputError, match=r"weights\.denoiser\.location: no file"):
        provenance.pinned(open_recipe)


def test_a_file_behind_a_url_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(f"memory://{tmp_path.name}")
    store.write("teacher.safetensors", b"weights")
    location, sha256 = f"{store.url}/teacher.safetensors", hashlib.sha256(b"weights").hexdigest()
    for stated in (sha256, ""):
        (model,) = provenance.models({"teacher": Weights(location=location, sha256=stated)})
        assert (model.location, model.sha256) == (location, sha256)
    with pytest.raises(InputError, match=rf"weights\.teacher\.sha256: 0+, but {location} has"):
        provenance.models({"teacher": Weights(location=location, sha256="0" * 64)})
    with pytest.raises(InputError, match=rf"weights\.teacher\.location: no file {store.url}/none"):
        provenance.models({"teacher": Weights(location=f"onnx:{store.url}/none")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "1.0"}, r"torch: \S+ on node NODE, but 1\.0 where"),
        ({"factory": "0.0.0"}, r"factory: \S+ on node NODE, but 0\.0\.0 where"),
        ({"no-such-library": "3.1"}, r"no-such-library: not installed on node NODE, but 3\.1"),
    ],
)
def test_a_node_with_other_libraries_is_refused(changes, words):
    here = provenance.versions()
    built = {name: f"{version.partition('+')[0]}+cu130" for name, version in here.items()}
    assert provenance.check_versions(built) == here
    with pytest.raises(InputError, match=words.replace("NODE", socket.gethostname())):
        provenance.check_versions(provenance.versions() | changes)


def test_versions_match_the_libraries_and_import_none_of_them():
    import numpy

    assert provenance.versions()["numpy"] == numpy.__version__
    code = (
        "import sys; from factory.datasets.provenance import versions; v = versions();"
        "assert 'torch' in v and 'simplejpeg' in v, v;"
        "assert not {'torch', 'numpy', 'diffusers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_some_weights_alone_are_run_by_counts_for_those():
    assert "transformers" not in provenance.versions()
    used = {"encoder": Weights(location="transformers:encoder/model.safetensors")}
    found = provenance.versions(used)
    assert found["transformers"] and found.keys() - {"transformers"} == provenance.versions().keys()


def file_of_ours(path, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.zeros(1, np.float32)}, path, {"format": f"{provenance.OURS}x", **facts})
    return str(path)


@pytest.mark.parametrize(
    ("location", "stated", "expected"),
    [
        ("onnx:{}/w600k_r50.onnx", "Apache-2.0", "non-commercial-research"),  # the catalog's
        ("onnx:{}/w600k_r50.onnx", "unknown", "unknown"),
        ("onnx:{}/w600k_r50.onnx", "own", "non-commercial-research AND own"),
        ("onnx:{}/w600k_r50.onnx?licence=Bought", "MIT", "Bought"),
        ("onnx:{}/w600k_r50.onnx?licence=MIT", "Apache-2.0", "Apache-2.0"),
        ("onnx:{}/w600k_r50.onnx?licence=proprietary&pixels=byte", "MIT", "proprietary"),
        ("adaface:{}/adaface_ir50_casia.ckpt?channels=bgr", "MIT", "unknown"),
        ("arcface_torch:{}/ms1mv3_arcface_r18_fp16/backbone.pth", "MIT", "non-commercial-research"),
        ("onnx:{}/mine.onnx", "MIT", "MIT"),
        ("{}/mine.safetensors", "MIT", "CC-BY-NC-4.0"),  # its own metadata's
        ("{}/mine.safetensors", "proprietary", "proprietary"),
        ("{}/arcface_torch/recognizer.safetensors", "MIT", "Apache-2.0"),  # before the catalog's
        ("{}/attributes.safetensors", "MIT", "CC-BY-SA-4.0"),
        ("{}/no-weights.safetensors", "MIT", "MIT"),
    ],
)
def test_a_licence_that_is_known_of_a_file_counts_where_it_is_stricter(
    location, stated, expected, tmp_path
):
    file_of_ours(tmp_path / "mine.safetensors", licence="CC-BY-NC-4.0")
    file_of_ours(tmp_path / "arcface_torch/recognizer.safetensors", licence="Apache-2.0")
    file_of_ours(tmp_path / "attributes.safetensors", config='{"licence": "CC-BY-SA-4.0"}')
    part = Weights(location=location.format(tmp_path), licence=stated)
    file = local_path(part.location)
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"weights")
    (model,) = provenance.models({"teacher": part})
    assert model.licence == expected


def test_references_that_name_no_file_have_the_licence_that_is_known_of_them(tmp_path):
    folder = Path(file_of_ours(tmp_path / "fr/recognizer.safetensors", licence="CC-BY-4.0")).parent
    for location, expected in (
        ("insightface:buffalo_l?download=yes", "non-commercial-research"),
        (str(folder), "CC-BY-4.0"),
        (str(tmp_path / "gone.safetensors"), "MIT"),
    ):
        part = Weights(location=location, licence="MIT")
        assert provenance.licence_of(part, "recognizer") == expected
