import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from factory import provenance
from factory.recipe import GenerateRecipe, InputError, Weights, content_digest, load
from factory.shards.store import Store

IDIFF = Path(__file__).parents[1] / "jobs/recipes/desk/generate/idiff_face.yaml"


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
        (["Apache-2.0", "Acme Faces EULA", "proprietary"], "Acme Faces EULA"),
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
    recipe = load(IDIFF)
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
    provenance.check_versions(provenance.versions())
    with pytest.raises(InputError, match=words.replace("NODE", socket.gethostname())):
        provenance.check_versions(provenance.versions() | changes)


def test_versions_match_the_libraries_and_import_none_of_them():
    import numpy

    assert provenance.versions()["numpy"] == numpy.__version__
    code = (
        "import sys; from factory.provenance import versions; v = versions();"
        "assert 'torch' in v and 'simplejpeg' in v, v;"
        "assert not {'torch', 'numpy', 'diffusers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
