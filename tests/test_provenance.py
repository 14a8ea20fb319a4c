import hashlib
import subprocess
import sys

import pytest

from factory import provenance
from factory.recipe import InputError, Weights


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


def test_versions_match_the_libraries_and_import_none_of_them():
    import numpy

    assert provenance.versions()["numpy"] == numpy.__version__
    code = (
        "import sys; from factory.provenance import versions; v = versions();"
        "assert 'torch' in v and 'simplejpeg' in v, v;"
        "assert not {'torch', 'numpy', 'diffusers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
