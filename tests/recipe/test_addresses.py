"""Addresses: what lies where, which options are ours; no secret is ever shown or kept."""

from pathlib import Path
from typing import Any

import pytest
from raw import BANK, COMPOSE, FR, GENERATE, LOOKALIKE, TRAIN, changed

import factory
from factory.recipe import (
    InputError,
    file_of,
    keyless,
    local_path,
    parse,
    public,
    with_options,
)

KEYED = (
    "s3://a-key:a-secret@bucket/x?region=r",
    "s3://bucket/x?access_key=a-key&secret_key=a-secret&region=r",
)


def test_locations() -> None:
    inside = local_path("package:plan.py")
    assert inside.samefile(Path(factory.__file__).parent / "plan.py")
    for location in ("a/b", "adaface:a/b?channels=bgr", "diffusers:a/b"):
        assert local_path(location) == Path("a/b")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("onnx:package:plan.py") == inside


def test_options_are_ours_and_the_rest_of_a_query_is_the_urls() -> None:
    assert with_options("a?channels=bgr&licence=my+own") == (
        "a",
        {"channels": "bgr", "licence": "my own"},
    )
    assert with_options("a?colour=bgr") == ("a", {"colour": "bgr"})  # to be refused
    url = "s3://b/a?endpoint_override=h:1&scheme=http"
    assert with_options(f"{url}&channels=bgr") == (url, {"channels": "bgr"})
    assert with_options("s3://b/a?channels=bgr") == ("s3://b/a", {"channels": "bgr"})
    assert file_of(f"adaface:{url}&channels=bgr") == url == file_of(url)


@pytest.mark.parametrize("url", KEYED)
@pytest.mark.parametrize(
    ("base", "field", "place"),
    [
        (GENERATE, "weights.teacher.location", "{}"),
        (GENERATE, "weights.teacher.location", "adaface:{}&channels=bgr"),
        (GENERATE, "screens.real_lookalike.embeddings.location", "{}"),
        (TRAIN, "data.train", "{}"),
        (TRAIN, "data.train", ("runs/a", "{}")),
        (TRAIN, "precompute.sidecar", "{}"),
        (TRAIN, "weights.start.location", "{}"),
        (FR, "data.train", "{}"),
        (FR, "benchmarks", "{}"),
        (BANK, "candidates.url", "{}"),
        (BANK, "known.location", "{}"),
        (COMPOSE, "pools.a.url", "{}"),
        (COMPOSE, "recognizer.location", "onnx:{}"),
    ],
)
def test_keys_in_an_address_are_refused_and_not_shown(
    base: dict[str, Any], field: str, place: str | tuple[str, ...], url: str
) -> None:
    screened = changed(base, "screens.real_lookalike", LOOKALIKE) if base is GENERATE else base

    def at(address: str) -> dict[str, Any]:
        kept = place.format(address) if isinstance(place, str) else [place[0], address]
        return changed(screened, field, kept)

    with pytest.raises(InputError) as caught:
        parse(at(url))
    said = str(caught.value)
    assert said.startswith(f"recipe field {field}: ") and said.count("; ") == 1, said
    assert "holds credentials" in said and "credentials in the environment" in said
    assert "a-key" not in said and "a-secret" not in said
    with pytest.raises(InputError) as caught:  # nor where a field is no address at all
        parse(changed(base, field.partition(".")[0], [url]))
    assert "a-secret" not in str(caught.value)
    for kept in ("s3://bucket/x?region=r&endpoint_override=h:9000", "gs://anonymous@bucket/x"):
        parse(at(kept))


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
    "https://h/x?region=a;token=word",
    "https://h/x?sig=wJal;rXUt",
    "https://h/x#access_token=word",
    "https://h/x?a=1?key=word",
    *(
        f"https://h/x?v=1&{name}=wJal&region=eu"
        for name in (
            *("X-Amz-Credential", "x-amz-date", "X-Goog-Signature", "x-goog-algorithm", "sig"),
            *("api_key", "apikey", "apiKey", "APIKEY", "API-Key", "api%5Fkey", "x-api-key"),
            *("AccessKeyId", "AWSAccessKeyId", "awsaccesskeyid", "access_token", "accessToken"),
            *("auth", "Authorization", "oauth", "OAuth_Token", "key", "KEY", "keys", "key1"),
            *("sas_token", "sastoken", "sas", "SharedAccessSignature", "Signature", "jwt"),
            *("password", "dbpassword", "passwd", "pwd", "sslkey", "AccountKey", "client_secret"),
            *("credentials", "mytoken", "userToken", "subscription-key", "bearer"),
        )
    ),
]


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_are_neither_shown_nor_kept(address: str) -> None:
    for text in (address, f"store {address}: no answer", f"('{address}', 3)"):
        shown = public(text)
        assert not any(
            word in shown.replace("password", "") for word in ("word", "AKIA", "wJal", "rXUt")
        ), shown
    with pytest.raises(InputError, match="holds credentials") as caught:
        keyless(address)
    assert "word" not in str(caught.value).replace("password", "") and "rXUt" not in str(
        caught.value
    )


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
        *(
            f"https://h/x?{name}=a&v=1"
            for name in (
                *("author", "authors", "keyboard", "sassy", "keyword", "monkey", "design"),
                *("signal", "tokenizer", "secretary", "region", "compass", "passage"),
            )
        ),
    ],
)
def test_addresses_without_secrets_are_kept_as_they_are(address: str) -> None:
    assert keyless(address) == address
