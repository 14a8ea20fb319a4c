"""Digests: 16 hex digits that name a recipe by the fields that change its result."""

import hashlib
import json
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel

from factory.recipe.addresses import DECIDING, with_options
from factory.recipe.generate import LATER, GenerateRecipe, Sampler, Screens
from factory.recipe.parts import AUTO, Weights
from factory.recipe.precision import stated_precision


def canonical(recipe: BaseModel) -> str:
    """Return the recipe as JSON with sorted keys and no spaces; equal recipes give equal text."""
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Return 16 hex digits of the sha256 of a recipe or any JSON value."""
    if isinstance(value, BaseModel):
        text = canonical(value)
    else:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bank_digest(recipe: GenerateRecipe) -> str:
    """Return the digest of all that changes the identity bank.

    Counts are left out, because a bank is packed greedily in key order: a short bank is the
    beginning of a longer one.
    """
    identities = recipe.identities.model_dump(mode="json", exclude={"count", "images_each"})
    return digest({"identities": identities, **_pixels(recipe)})


def content_digest(recipe: GenerateRecipe, versions: dict[str, str]) -> str:
    """Return the digest of only what changes pixels; every sidecar holds it, and it names pools.

    Args:
        recipe: the recipe of the dataset.
        versions: versions of the libraries that compute pixels, by name.
    """
    return digest(
        {
            **_pixels(recipe),
            "bank": bank_digest(recipe),
            "image": recipe.image.model_dump(mode="json"),
            "screens": _screens(recipe.screens),
            "shard": recipe.shard.model_dump(mode="json"),
            "versions": versions,
        }
    )


def _screens(screens: Screens) -> dict[str, Any]:
    """Return the fields of screens that change verdicts; embeddings count by their sha256."""
    decides = screens.model_dump(mode="json", exclude={"real_lookalike"})
    rule = screens.real_lookalike
    if rule is not None:  # left out if absent, so that digests from before this screen stay valid
        decides["real_lookalike"] = [rule.max_cosine, rule.embeddings.sha256]
    return decides


def _sampler(sampler: Sampler | None) -> dict[str, Any] | None:
    """Return the sampler; what was not always a field of it is left out where nobody sets it."""
    if sampler is None:
        return None
    stated = sampler.model_dump(mode="json")
    fields = Sampler.model_fields
    return {k: v for k, v in stated.items() if k not in LATER or v != fields[k].default}


def _pixels(recipe: GenerateRecipe) -> dict[str, Any]:
    assert stated_precision(recipe) != AUTO, "what auto means is settled before a digest is taken"
    sampler = recipe.sampler.name if recipe.sampler else ""
    clipped = sampler in ("ddpm", "ddim") and "autoencoder" not in recipe.weights
    since = {"clipped": True} if clipped else {}  # left out, older digests stay valid
    return since | {
        "seed": recipe.seed,
        "system": recipe.system,
        "size": recipe.image.size,
        "options": _without_urls(recipe.options),
        "weights": {name: _network(part) for name, part in recipe.weights.items()},
        "sampler": _sampler(recipe.sampler),
        "threads": recipe.workers.threads,
    }


def _network(weights: Weights) -> str:
    """Return a network's name: its file's sha256, and the options that change what it computes."""
    options = with_options(weights.location)[1]
    stated = sorted((name, options[name]) for name in DECIDING if name in options)
    return "?".join([weights.sha256, urlencode(stated)] if stated else [weights.sha256])


def _without_urls(options: Any) -> Any:
    """Return options without the urls of datasets that a digest names as well."""
    if isinstance(options, dict):
        kept = options.keys() - {"url"} if "digest" in options else options.keys()
        return {name: _without_urls(options[name]) for name in kept}
    return options
