"""The recognizer of a pack of insightface, `insightface:NAME`, below `~/.insightface/models`.

Nothing is downloaded unless `download=yes` asks for it.
"""

import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import torch

from factory.datasets import catalog
from factory.recipe import InputError
from factory.recognition.onnx_files import onnx_recognizer
from factory.recognition.recognizer import CHANNELS, Recognizer, options_of

DOWNLOAD_SECONDS = 60.0


def load_insightface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load the recognizer of an insightface pack that is on this machine, or was asked for."""
    name, options = options_of(reference, channels=CHANNELS, download=("yes", "no"))
    folder = models_folder() / name
    entry = next((entry for entry in catalog.packs() if entry.name == name), None)
    if not folder.is_dir():
        known = ", ".join(pack.name for pack in catalog.packs())
        if entry is None:
            raise InputError(
                f"recognizer {reference!r}: no folder {folder}; accepted is a folder there, or one "
                f"of: {known}"
            )
        if options.get("download") != "yes" or not entry.archive:
            raise InputError(f"recognizer {reference!r}: no {folder}; {catalog.by_hand(entry)}")
        print(f"{name}: licence {entry.licence}: {entry.note}, from {entry.source}", flush=True)
        download(entry.archive, folder, reference)
    found = [path for path in sorted(folder.rglob("*.onnx")) if _is_recognizer(path)]
    if len(found) != 1:
        raise InputError(
            f"recognizer {reference!r}: {len(found)} files in {folder} map 112 x 112 images to "
            "embeddings, accepted is one; onnx:FILE names one"
        )
    licence = entry.licence if entry else catalog.UNKNOWN
    return onnx_recognizer(found[0], reference, {"licence": licence, **options}, device)


def models_folder() -> Path:
    """Return the folder insightface keeps its packs in."""
    return Path.home() / ".insightface" / "models"


def download(address: str, folder: Path, reference: str) -> None:
    """Fetch a zip of models and put its `.onnx` files into a folder, all of them or none.

    Raises:
        InputError: the address cannot be reached, or gives no zip with models.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        archive, unpacked = Path(aside) / "archive.zip", Path(aside) / folder.name
        unpacked.mkdir()
        try:
            with (
                urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer,
                archive.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if name.endswith(".onnx"):  # only its last part counts, so it stays inside
                        (unpacked / Path(name).name).write_bytes(packed.read(name))
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(
                f"recognizer {reference!r}: {address} cannot be fetched ({error}); accepted is the "
                f"pack unpacked in {folder}"
            ) from error
        if not any(unpacked.iterdir()):
            raise InputError(f"recognizer {reference!r}: {address} holds no .onnx file")
        unpacked.rename(folder)


def _is_recognizer(path: Path) -> bool:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    made = [len(output.type.tensor_type.shape.dim) for output in graph.output]
    return sides[1:] == [3, 112, 112] and made == [2]
