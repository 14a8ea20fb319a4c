"""The signed contact sheet, read back by c2pa with a certificate made here."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
import numpy as np
import patches
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from factory.export.about import About
from factory.export.sheet import ContactSheet
from factory.recipe import InputError

Run = Callable[..., tuple[Path, About]]
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def chain(folder: Path, key: Key) -> tuple[Path, Path]:
    """Write a certificate for signing with the one that issued it, and its key."""
    folder.mkdir(exist_ok=True)
    issuer_key = ec.generate_private_key(ec.SECP256R1())

    def name(text: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A test"),
                x509.NameAttribute(NameOID.COMMON_NAME, text),
            ]
        )

    def certificate(subject: str, public: Key, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        built = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Issuer"))
            .public_key(public.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca,
                    key_cert_sign=ca,
                    crl_sign=ca,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public.public_key()), False)
        )
        if not ca:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            built = built.add_extension(purpose, critical=False)
        return built.sign(issuer_key, hashes.SHA256())

    leaf, issuer = certificate("Leaf", key, False), certificate("Issuer", issuer_key, True)
    cert, key_file = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(leaf.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM))
    key_file.write_bytes(pem(key))
    return cert, key_file


@pytest.mark.parametrize("kind", ["ec", "ed25519"])
def test_the_sheet_carries_the_manifests_sha256(kind: str, run: Run, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else None
    pair = chain(tmp_path / "keys", key or ed25519.Ed25519PrivateKey.generate())
    folder, about = run("wds", c2pa=pair)
    sheet = (folder / "contact_sheet.jpg").read_bytes()
    with c2pa.Reader("image/jpeg", io.BytesIO(sheet)) as reader:
        read = json.loads(reader.json())
        assert reader.get_validation_state() in ("Valid", "Trusted")
    manifest = read["manifests"][read["active_manifest"]]
    assertions = {part["label"]: part["data"] for part in manifest["assertions"]}
    assert assertions["com.face-data-factory.manifest"] == {"sha256": about.source.sha256}
    actions = next(data for label, data in assertions.items() if label.startswith("c2pa.actions"))
    assert actions["actions"][0]["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert manifest["title"] == "acme_v1 contact sheet"
    changed = bytearray(sheet)
    changed[-100] ^= 1
    with c2pa.Reader("image/jpeg", io.BytesIO(bytes(changed))) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_wrong_keys_are_the_users_mistake(run: Run, tmp_path: Path) -> None:
    cert, key = chain(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))
    other = tmp_path / "other.pem"
    other.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(InputError, match=r"other\.pem"):
        run("wds", "one", c2pa=(cert, other))
    with pytest.raises(InputError, match=r"missing\.pem: cannot be read"):
        run("wds", "two", c2pa=(cert, tmp_path / "missing.pem"))
    with pytest.raises(InputError, match=r"cert\.pem: .*private key"):
        run("wds", "three", c2pa=(key, cert))


def test_the_sheet_shows_one_identity_a_row() -> None:
    sheet = ContactSheet()
    for label in range(20):
        for number in range(20):
            face = np.full((20, 20, 3), (label * 12, number * 12, 100), np.uint8)
            sink = io.BytesIO()
            Image.fromarray(face).save(sink, "PNG")
            sheet.see(label, sink.getvalue())
    shown = np.asarray(Image.open(io.BytesIO(sheet.jpeg()))).astype(int)
    assert shown.shape == (8 * 22 - 2, 8 * 22 - 2, 3)
    for row in range(8):
        for column in range(8):
            middle = shown[row * 22 + 10, column * 22 + 10]
            assert abs(middle - (row * 12, column * 12, 100)).max() < 6


def test_images_of_other_sizes_are_made_as_large_as_the_first() -> None:
    sheet = ContactSheet()
    for label, size in enumerate((20, 40, 10)):
        sink = io.BytesIO()
        Image.fromarray(np.full((size, size, 3), 50 + 40 * label, np.uint8)).save(sink, "PNG")
        sheet.see(label, sink.getvalue())
    shown = np.asarray(Image.open(io.BytesIO(sheet.jpeg()))).astype(int)
    assert shown.shape == (3 * 22 - 2, 20, 3)
    for label in range(3):
        assert abs(shown[label * 22 : label * 22 + 20] - (50 + 40 * label)).max() < 12


def test_photographs_are_not_signed_as_made_by_a_model(
    run: Run, dataset: patches.Made, tmp_path: Path
) -> None:
    pair = chain(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))
    manifest = json.loads(dataset.store.read("manifest.json"))
    manifest["digitalSourceType"] = "digitalCapture"
    dataset.store.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match=r"--c2pa: .* are digitalCapture; .* accepted is trained"):
        run("wds", c2pa=pair)
    assert not (tmp_path / "out").exists()
