"""Addresses: no secret of any store's is ever shown or kept."""

import pytest

from factory.recipe import InputError, keyless, public

SECRETS = [
    "s3://AKIA:wJal/rXUt+nFEMI@bucket/x",
    "s3://AKIA:word@bucket/x?endpoint_override=http://h:9000",
    "s3://b/x?access_key=AKIA-word&region=r",
    "s3://b/x?secret_key=wJal/rXUt&region=r",
    "s3://b/x?session_token=word",
    "https://b.s3.amazonaws.com/x?X-Amz-Credential=AKIA%2Fword&X-Amz-Expires=60",
    "https://b.s3.amazonaws.com/x?X-Amz-Security-Token=word&X-Amz-Signature=word",
    "https://storage.googleapis.com/b/x?X-Goog-Signature=word&X-Goog-Credential=word",
    "https://storage.googleapis.com/b/x?GoogleAccessId=a&Signature=word",
    "abfs://container@account.dfs.core.windows.net/x?sv=1&sig=word%3D",
    "https://account.blob.core.windows.net/c/x?sv=1&se=2&sig=word",
    "https://ghp_word@host/x",
    "https://user:word@host/x",
    "hf://datasets/a/b?token=word",
    "http://h/x?api_key=word",
    "http://h/x?Authorization=Bearer%20word",
    "adaface:s3://b/f.ckpt?secret_key=word&channels=bgr",
]


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_are_neither_shown_nor_kept(address: str) -> None:
    for text in (address, f"store {address}: no answer", f"('{address}', 3)"):
        shown = public(text)
        assert not any(word in shown for word in ("word", "AKIA", "wJal", "rXUt")), shown
    with pytest.raises(InputError, match="holds credentials") as caught:
        keyless(address)
    assert "word" not in str(caught.value) and "rXUt" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "runs/faces",
        "s3://bucket/a@b/x?region=eu",
        "s3://bucket/x?endpoint_override=http://127.0.0.1:9000/a@b",
        "abfs://container@account.dfs.core.windows.net/x",
        "gs://anonymous@bucket/x",
        "http://host:8080/a/b",
        "adaface:f.ckpt?channels=bgr",
    ],
)
def test_addresses_without_secrets_are_kept_as_they_are(address: str) -> None:
    assert keyless(address) == address
