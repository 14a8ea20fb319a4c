"""Other projects' autoencoders: a VQModel as diffusers saves it, such as LDM's VQ-f4.

`diffusers:FOLDER/diffusion_pytorch_model.safetensors`, or `.bin`, names the weights; FOLDER may be
a URL. `config.json` beside them states the architecture. A recipe's sha256 covers the weights
alone, because their shapes show what the config says, or the config must equal what `VQ` builds.
Two fields of the config are ignored. `sample_size`, because the recipe states the size of images.
`scaling_factor`, because LDM and IDiff-Face do not scale VQ-f4's latents (docs/papers.md 2.1), and
diffusers writes its default of 0.18215 into every config that states none.
"""

import json
import posixpath
import re

import torch
from safetensors.torch import load_file
from torch import Tensor

from factory.datasets.located import local_file
from factory.datasets.store import parted
from factory.diffusion.autoencoder import VQConfig
from factory.recipe import InputError, Weights, checked, with_options

PREFIX, CONFIG = "diffusers:", "config.json"
ACCEPTED = (
    "accepted is diffusers:FOLDER/diffusion_pytorch_model.safetensors or .bin, a VQModel built as "
    f"LDM's VQ-f4 is, with its {CONFIG} beside it"
)
SIZES = {  # ours -> VQModel's
    "latent_channels": "latent_channels",
    "codes": "num_vq_embeddings",
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
}
UNSEEN = {"act_fn": "silu", "norm_num_groups": 32}  # fields that no shape of a tensor shows
ATTENTION = {  # names of 2022, when diffusers published VQ-f4 -> names of today
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def is_vqmodel(weights: Weights) -> bool:
    """Tell whether a location names a VQModel of diffusers."""
    return weights.location.startswith(PREFIX)


def vq_config(weights: Weights, name: str) -> VQConfig:
    """Return the sizes that the config beside a VQModel states; `size` keeps its default.

    Args:
        weights: the VQModel's file.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: there is no config beside the weights, or it is not that of such a VQModel.
    """
    field = f"recipe field weights.{name}.location"
    file, options = with_options(weights.location.removeprefix(PREFIX))
    if options:
        raise InputError(f"{field}: option {', '.join(options)}; {PREFIX} accepts none")
    place, query = parted(file)
    beside = posixpath.join(posixpath.dirname(place), CONFIG) + query
    path = local_file(beside, field, ACCEPTED)
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{field}: {path} is not JSON ({error}); {ACCEPTED}") from None
    kind = raw.get("_class_name") if isinstance(raw, dict) else None
    if kind != "VQModel":
        raise InputError(f"{field}: {path} is of {kind or 'no class'}; {ACCEPTED}")
    lacking = [theirs for theirs in SIZES.values() if theirs not in raw]
    if lacking:
        raise InputError(f"{field}: {path} states no {lacking[0]}; {ACCEPTED}")
    for key, wanted in UNSEEN.items():
        if raw.get(key, wanted) != wanted:
            raise InputError(f"{field}: {path} has {key} {raw[key]!r}; accepted is {wanted!r}")
    sizes = {ours: raw[theirs] for ours, theirs in SIZES.items()}
    return checked(VQConfig, {"kind": "vq", **sizes}, f"{field}: {path} ")


def vq_state(weights: Weights, name: str) -> dict[str, Tensor]:
    """Return a VQModel's tensors under the names of `VQ`, read without running code.

    Args:
        weights: the VQModel's file.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: the file is missing, or is not a state dict.
    """
    field = f"recipe field weights.{name}.location"
    path = local_file(weights.location, field, ACCEPTED)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for other files
        reason = str(error).splitlines()[0]
        raise InputError(f"{field}: {path} holds no weights ({reason}); {ACCEPTED}") from error
    if not isinstance(state, dict):
        raise InputError(f"{field}: {path} holds {type(state).__name__}; {ACCEPTED}")
    return {f"model.{_renamed(key)}": value for key, value in state.items()}


def _renamed(key: str) -> str:
    return re.sub(
        rf"(?<=\.attentions\.0\.)({'|'.join(ATTENTION)})(?=\.)",
        lambda part: ATTENTION[part[0]],
        key,
    )
