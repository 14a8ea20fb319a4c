"""Autoencoders of others: LDM's VQ-f4, as its authors publish it or as diffusers saves it.

`ldm:FILE` names the decoder's file of the two that IDiff-Face is used with, which holds the
codebook too, or the single file of latent-diffusion, in which `first_stage_model.` stands before
the names. Where the file has no encoder, the one beside it is read (`decoder` in the name becomes
`encoder`); without one there is none, and images can be decoded only. A recipe's sha256 is of the
file named.

`diffusers:FOLDER/diffusion_pytorch_model.safetensors`, or `.bin`, is a VQModel built as VQ-f4, or
the AutoencoderKL of Stable Diffusion 1 (`factory.diffusion.folders`). Two fields of a VQModel's
config are ignored. `sample_size`, because the recipe states the size of images. `scaling_factor`,
because LDM and IDiff-Face do not scale VQ-f4's latents (docs/papers.md 2.1), and diffusers writes
its default of 0.18215 into every config that states none. Stable Diffusion's latents are scaled by
it, so an AutoencoderKL is read with its factor.
"""

import posixpath
import re
from typing import Any

from torch import Tensor

from factory.datasets.located import find_file, local_file
from factory.datasets.store import parted
from factory.diffusion.autoencoder import KL_BUILT, KLConfig, VQConfig
from factory.diffusion.folders import CONFIG, check_fields, read_config
from factory.diffusion.layouts import Layout
from factory.recipe import InputError, Weights, checked, prefix_of, with_options
from factory.recognition.tensors import read_tensors

ACCEPTED = (
    "accepted is diffusers:FOLDER/diffusion_pytorch_model.safetensors or .bin, a VQModel built as "
    "LDM's VQ-f4 is or an AutoencoderKL built as Stable Diffusion 1's is, with its "
    f"{CONFIG} beside it"
)
SIZES = {  # ours -> VQModel's
    "latent_channels": "latent_channels",
    "codes": "num_vq_embeddings",
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
}
UNSEEN = {"act_fn": "silu", "norm_num_groups": 32}  # fields that no shape of a tensor shows
KL_SIZES = {  # ours -> AutoencoderKL's
    "latent_channels": "latent_channels",
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
}
KL_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
ATTENTION = {  # names of 2022, when diffusers published VQ-f4 -> names of today
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


LDM = (
    "accepted is ldm:FILE, first_stage_decoder_state_dict.pt with its encoder's file beside it, or "
    "latent-diffusion's model.ckpt of VQ-f4"
)
WHOLE = "first_stage_model."  # before the names in latent-diffusion's own file
RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
MIDDLE = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
ENCODER = ("model.encoder.", "model.quant_conv.")  # what decoding does without


def is_foreign(weights: Weights) -> bool:
    """Tell whether a location names an autoencoder as others store it."""
    return prefix_of(weights.location) in ("diffusers", "ldm")


def foreign_config(weights: Weights, name: str) -> VQConfig | KLConfig:
    """Return the sizes of an autoencoder of others; `size` is left as it is by default.

    Of `ldm:` they are read from the tensors, of `diffusers:` from the config beside them.

    Args:
        weights: the autoencoder's file.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: the file, or the config beside it, is missing or of something else.
    """
    field = f"recipe field weights.{name}.location"
    if prefix_of(weights.location) == "ldm":
        options = with_options(weights.location.partition(":")[2])[1]
        unknown = [option for option in options if option != "licence"]
        if unknown:
            raise InputError(f"{field}: option {unknown[0]}; ldm: accepts licence=NAME")
        return checked(VQConfig, _ldm(weights, field)[0], f"{field}: ")
    raw, path = read_config(weights, field, ACCEPTED)
    kind = raw.get("_class_name")
    if kind == "AutoencoderKL":
        return _kl_config(raw, f"{field}: {path}")
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


def _kl_config(raw: dict[str, Any], where: str) -> KLConfig:
    ignored = {name: raw[name] for name in ("sample_size", "force_upcast") if name in raw}
    typed = {name: [kind] * len(raw.get(name) or "-") for name, kind in KL_TYPES.items()}
    check_fields(raw, {**KL_BUILT, **typed, **ignored}, tuple(KL_SIZES.values()), where)
    sizes = {ours: raw[theirs] for ours, theirs in KL_SIZES.items()}
    return checked(KLConfig, {"kind": "kl", **sizes}, f"{where} ")


def foreign_state(weights: Weights, name: str) -> dict[str, Tensor]:
    """Return the float32 tensors of an autoencoder of others, read without running code.

    They have the names of `VQ` or `KL`. Those of `ldm:` may lack the encoder (`ENCODER`).

    Args:
        weights: the autoencoder's file.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: the file is missing, or is not a state dict.
    """
    field = f"recipe field weights.{name}.location"
    if prefix_of(weights.location) == "ldm":
        return _ldm(weights, field)[1]
    state = read_tensors(local_file(weights.location, field, ACCEPTED), field, accepted=ACCEPTED)
    return {f"model.{_renamed(key)}": value for key, value in state.items()}


def _ldm(weights: Weights, field: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return sizes and tensors of LDM's VQ-f4; InputError where the file is something else."""
    path = local_file(weights.location, field, LDM)
    file = Layout(read_tensors(path, field, accepted=LDM), f"{field}: {path}", LDM)
    vq = file.within(WHOLE if file.has(WHOLE) else "")
    if not vq.has("encoder.") and "decoder" in path.name:
        place, query = parted(with_options(weights.location.partition(":")[2])[0])
        folder, name = posixpath.split(place)
        beside = find_file(
            posixpath.join(folder, name.replace("decoder", "encoder")) + query, field
        )
        if beside is not None:
            vq.found = {**read_tensors(beside, field, accepted=LDM), **vq.found}
    codes, narrow = vq.take("quantize.embedding.weight").shape
    levels = len({name.split(".")[2] for name in vq.found if name.startswith("decoder.up.")})
    widths = [vq.take(f"decoder.up.{n}.block.0.conv2.weight").shape[0] for n in range(levels)]
    blocks = sum(vq.has(f"decoder.up.0.block.{n}.") for n in range(len(vq.found))) - 1
    state = {"quantize.embedding.weight": vq.take("quantize.embedding.weight")}
    state |= vq.layer("post_quant_conv", "post_quant_conv") | _half(vq, "decoder")
    for level in range(levels):
        ours, theirs = f"decoder.up_blocks.{levels - 1 - level}", f"decoder.up.{level}"
        state |= _ldm_level(vq, ours, theirs, blocks + 1)
        if level:
            state |= vq.layer(f"{ours}.upsamplers.0.conv", f"{theirs}.upsample.conv")
    if vq.has("encoder."):
        state |= vq.layer("quant_conv", "quant_conv") | _half(vq, "encoder")
        for level in range(levels):
            ours, theirs = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
            state |= _ldm_level(vq, ours, theirs, blocks)
            if level < levels - 1:
                state |= vq.layer(f"{ours}.downsamplers.0.conv", f"{theirs}.downsample.conv")
    sizes = {
        "kind": "vq",
        "latent_channels": narrow,
        "codes": codes,
        "widths": widths,
        "blocks": blocks,
    }
    return sizes, {f"model.{name}": value for name, value in state.items()}


def _half(vq: Layout, half: str) -> dict[str, Tensor]:
    """Return what encoder and decoder have alike: both ends and the middle."""
    ours, theirs = f"{half}.mid_block", f"{half}.mid"
    state = vq.layer(f"{half}.conv_in", f"{half}.conv_in")
    state |= vq.layer(f"{half}.conv_norm_out", f"{half}.norm_out")
    state |= vq.layer(f"{half}.conv_out", f"{half}.conv_out")
    state |= vq.layers(f"{ours}.resnets.0", f"{theirs}.block_1", RESIDUAL)
    state |= vq.layers(f"{ours}.resnets.1", f"{theirs}.block_2", RESIDUAL)
    state |= vq.layer(f"{ours}.attentions.0.group_norm", f"{theirs}.attn_1.norm")
    return state | vq.layers(f"{ours}.attentions.0", f"{theirs}.attn_1", MIDDLE, linear=True)


def _ldm_level(vq: Layout, ours: str, theirs: str, blocks: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for n in range(blocks):
        state |= vq.layers(f"{ours}.resnets.{n}", f"{theirs}.block.{n}", RESIDUAL)
        if vq.has(f"{theirs}.block.{n}.nin_shortcut."):
            state |= vq.layer(
                f"{ours}.resnets.{n}.conv_shortcut", f"{theirs}.block.{n}.nin_shortcut"
            )
    return state


def _renamed(key: str) -> str:
    return re.sub(
        rf"(?<=\.attentions\.0\.)({'|'.join(ATTENTION)})(?=\.)",
        lambda part: ATTENTION[part[0]],
        key,
    )
