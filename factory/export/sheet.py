"""A contact sheet with a C2PA signature that states the sha256 of the source's manifest."""

import io
import json
from pathlib import Path

import numpy as np
import simplejpeg

import factory
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE
from factory.recipe import InputError
from factory.recognition.images import decode, fitted

ROWS, COLUMNS = 8, 8
LARGEST, GAP = 112, 2  # pixels
ASSERTION = "com.face-data-factory.manifest"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
CURVES = {256: "es256", 384: "es384", 521: "es512"}


class ContactSheet:
    """The first images of the first identities, collected during an export."""

    def __init__(self) -> None:
        """Start an empty sheet."""
        self._rows: dict[int, list[bytes]] = {}

    def see(self, label: int, encoded: bytes) -> None:
        """Keep an image (JPEG or PNG) of an identity if there is room for it."""
        if label in self._rows or len(self._rows) < ROWS:
            row = self._rows.setdefault(label, [])
            if len(row) < COLUMNS:
                row.append(encoded)

    def jpeg(self) -> bytes:
        """Return the sheet as a JPEG with one identity a row; all images have the first's size."""
        rows = list(self._rows.values())
        edge = min(len(decode(rows[0][0], "contact sheet")), LARGEST)
        step = edge + GAP
        width = max(map(len, rows)) * step - GAP
        canvas = np.full((len(rows) * step - GAP, width, 3), 128, dtype=np.uint8)
        for y, row in enumerate(rows):
            for x, encoded in enumerate(row):
                top, left = y * step, x * step
                face = fitted(decode(encoded, "contact sheet"), edge, "", resize=True)
                canvas[top : top + edge, left : left + edge] = face
        return simplejpeg.encode_jpeg(canvas, 92, colorspace="RGB", colorsubsampling="444")


def sign(jpeg: bytes, title: str, manifest_sha256: str, cert: Path, key: Path) -> bytes:
    """Return the JPEG with a signed C2PA manifest inside.

    The manifest says that a trained model made the picture (IPTC digital source type), which the
    caller must have checked, and holds the sha256 of the dataset's manifest as an assertion. No
    time stamp authority is asked, so that nothing leaves the machine. Each run gives another
    signature.

    Args:
        jpeg: the sheet.
        title: the title that C2PA viewers show.
        manifest_sha256: sha256 of the dataset's manifest, 64 hex digits.
        cert: PEM file with the certificate, followed by those that issued it.
        key: PEM file of its private key (elliptic curve, Ed25519 or RSA) without a password.

    Raises:
        InputError: c2pa-python is not installed, or certificate or key are not accepted.
    """
    try:
        import c2pa
    except ImportError:
        raise InputError(
            "--c2pa: c2pa-python is not installed; pip install 'face-data-factory[c2pa]'"
        ) from None
    made = {
        "action": "c2pa.created",
        "digitalSourceType": f"{SOURCE_TYPES}{DIGITAL_SOURCE_TYPE}",
    }
    manifest = {
        "title": title,
        "format": "image/jpeg",
        "claim_generator_info": [{"name": "face-data-factory", "version": factory.__version__}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [made]}},
            {"label": ASSERTION, "data": {"sha256": manifest_sha256}},
        ],
    }
    info = c2pa.C2paSignerInfo(_algorithm(key), _read(cert), _read(key), None)
    signed = io.BytesIO()
    try:
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
            builder.sign(signer, "image/jpeg", io.BytesIO(jpeg), signed)
    except c2pa.C2paError as error:
        raise InputError(
            f"--c2pa {cert} {key}: {error}; accepted is a signing certificate and its key"
        ) from None
    return signed.getvalue()


def _algorithm(path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    accepted = "accepted is a PEM file of an EC, Ed25519 or RSA private key without a password"
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:
        raise InputError(f"--c2pa {path}: {error}; {accepted}") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in CURVES:
        return CURVES[key.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise InputError(f"--c2pa {path}: {type(key).__name__}; {accepted}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--c2pa {path}: cannot be read ({error}); accepted is PEM") from None
