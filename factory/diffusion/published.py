"""Denoisers as their authors publish them: those of DCFace, of IDiff-Face and of Arc2Face.

`dcface:FILE` is a checkpoint of stage 2 with all that it needs inside: the averaged U-Net, the
trained identity encoder, the style mapping and the teacher; or one of stage 1, a U-Net alone.
`idiff_face:FILE` is an averaged or a raw checkpoint of IDiff-Face, which hold equal weights as its
code was read (papers.md 6), with `eps_model.` before the names or without. `diffusers:FILE` is
the U-Net of Arc2Face in a folder of diffusers (`factory.diffusion.stable`).

Sizes, grid and conditioning are read from the shapes of the tensors; what no shape tells is as the
published networks are built. Of stage 2 the average is loaded and nothing else: a file that has
only raw weights beside the style mapping is refused. Tensors are read without running code
(`factory.recognition.tensors`). Whatever a file has in another way than listed is an error.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from factory.datasets.located import local_file
from factory.diffusion.folders import class_of
from factory.diffusion.layouts import Layout, PublishedDenoiser
from factory.diffusion.schedule import Process
from factory.diffusion.stable import FOLDER, UNET, read_unet
from factory.recipe import InputError, Weights, prefix_of, with_options
from factory.recognition.backbones import DEPTHS
from factory.recognition.inside import TEACHER, iresnet_inside
from factory.recognition.tensors import read_tensors

AVERAGED, RAW, STYLE = "ema_model.averaged_model.", "model.", "external_mapping."
ENCODER = "label_mapping.backbone.backbone."
DCFACE = (
    "accepted is dcface:FILE, a checkpoint of DCFace's stage 2 with its averaged U-Net "
    f"({AVERAGED}*), or of stage 1"
)
IDIFF = (
    "accepted is idiff_face:FILE, ema_averaged_model.ckpt or model.ckpt of IDiff-Face, with or "
    "without eps_model. before its names"
)
ADM_RESIDUAL = {  # ours -> those of the published U-Net
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
UNET_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb.1",
    "scale": "scale_emb",
    "shift": "shift_emb",
    "norm2": "norm2.norm",
    "conv2": "conv2",
}
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "proj_out"}
SCHEDULE = (  # IDiff-Face's buffers, which follow from the first
    *("betas", "alphas", "sigmas", "sqrt_alphas_inv", "alpha_bars", "sqrt_alpha_bars"),
    *("sqrt_one_minus_alpha_bars", "one_minus_alphas_over_sqrt_one_minus_alpha_bars"),
)
GRIDS = {1 + k * k: k for k in (1, 3, 5, 7)}
INSIDE = ""  # in the place of a teacher's sha256: it is in the same file
LATENT_SIZE = 32  # of IDiff-Face's latents; no shape tells it


def is_published(weights: Weights, name: str) -> bool:
    """Tell whether a location names a denoiser as its authors publish it.

    Args:
        weights: where it lies.
        name: its name among the recipe's `weights`, for messages. What lies in a folder of
            diffusers as `denoiser` is held to be one, whatever its config says.
    """
    prefix = prefix_of(weights.location)
    return prefix in READERS or (
        prefix == FOLDER and (name == "denoiser" or class_of(weights, name) == UNET)
    )


def read_published(weights: Weights, name: str) -> PublishedDenoiser:
    """Read the denoiser of a location for which `is_published` holds.

    Args:
        weights: where it lies.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: there is no such file, it is something else, or its tensors are not those of a
            published checkpoint of the kind that the prefix names.
    """
    field = f"recipe field weights.{name}.location"
    if prefix_of(weights.location) == FOLDER:
        return read_unet(weights, field)
    accepted, reader = READERS[prefix_of(weights.location)]
    options = with_options(weights.location.partition(":")[2])[1]
    unknown = [option for option in options if option != "licence"]
    if unknown:
        raise InputError(f"{field}: option {unknown[0]}; accepted is licence=NAME")
    path = local_file(weights.location, field, accepted)
    found = read_tensors(path, field, accepted=accepted)
    return reader(Layout(found, f"{field}: {path}", accepted))


def _dcface(file: Layout) -> PublishedDenoiser:
    """Read stage 2, or stage 1 where there is no style mapping."""
    conditioned = file.has(STYLE)
    if file.has(AVERAGED):
        unet = file.within(AVERAGED)
    elif conditioned:
        raise InputError(
            f"{file.where} has raw weights alone ({RAW}*), which nobody samples; {DCFACE}"
        )
    else:
        unet = file.within(RAW if file.has(RAW) else "")
    sizes, state = _adm(unet)
    config: dict[str, Any] = {
        "system": "dcface",
        "model": {"unet": sizes},
        "process": Process().model_dump(),
        "trained_with": {"teacher": INSIDE} if conditioned else {},
    }
    state = {f"unet.{name}": value for name, value in state.items()}
    if conditioned:
        if not file.has(TEACHER):
            raise InputError(f"{file.where} has no teacher inside ({TEACHER}*); {DCFACE}")
        conditions, mapped = _conditions(file)
        config["model"]["conditions"] = conditions
        config["model"] = sized(config["model"], conditions["identity_size"])
        state |= mapped
    return PublishedDenoiser(config, state)


def sized(model: dict[str, Any], size: int) -> dict[str, Any]:
    """Return DCFace's sizes with that of its images, where they have none.

    An ADM U-Net's levels of odd sides hand on their map as it is: at 112 pixels level 4 with its
    7 x 7, at 256 pixels none.

    Args:
        model: sizes of the network, with those of the U-Net under `unet`.
        size: height and width of images.
    """
    unet = model["unet"]
    if "size" in unet:
        return model
    kept, side = [], size
    for level in range(len(unet["widths"]) - 1):
        if side % 2:
            kept.append(level)
        else:
            side //= 2
    return {**model, "unet": {**unet, "size": size, "unresized": kept}}


def _adm(unet: Layout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return sizes and tensors of the ADM U-Net."""
    stem, out = unet.take("input_blocks.0.0.weight"), unet.take("out.2.weight")
    count = len({name.split(".")[1] for name in unet.found if name.startswith("input_blocks.")})
    # Only a block that resizes stands behind another in the same place of the way up.
    levels = 1 + sum(
        unet.has(f"output_blocks.{n}.1.in_layers.") or unet.has(f"output_blocks.{n}.2.in_layers.")
        for n in range(count)
    )
    blocks = count // levels - 1
    if count % levels or blocks < 1:
        raise InputError(
            f"{unet.where} has {count} blocks in {levels} levels, not as many in each; "
            f"{unet.accepted}"
        )
    starts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [unet.take(f"input_blocks.{n}.0.out_layers.3.weight").shape[0] for n in starts]
    attention = [unet.has(f"input_blocks.{n}.1.qkv.") for n in starts]
    state = unet.layer("stem", "input_blocks.0.0")
    state |= unet.layer("time.layers.0", "time_embed.0") | unet.layer(
        "time.layers.2", "time_embed.2"
    )
    for n in range(1, count):
        state |= _adm_level(unet, f"down.{n - 1}", f"input_blocks.{n}", n % (blocks + 1) == 0)
    state |= _adm_level(unet, "middle.0", "middle_block", False)
    state |= _adm_block(unet, "middle.1.residual", "middle_block.2")
    place = 0
    for n in range(count):
        state |= _adm_level(unet, f"up.{place}", f"output_blocks.{n}", False)
        place += 1
        last = 2 if unet.has(f"output_blocks.{n}.1.qkv.") else 1
        if unet.has(f"output_blocks.{n}.{last}.in_layers."):
            state |= _adm_block(unet, f"up.{place}", f"output_blocks.{n}.{last}")
            place += 1
    state |= unet.layer("norm", "out.0") | unet.layer("out", "out.2")
    unet.finish()
    sizes = {
        "in_channels": stem.shape[1],
        "out_channels": out.shape[0],
        "widths": widths,
        "attention": attention,
        "blocks": blocks,
    }
    return sizes, state


def _adm_level(unet: Layout, ours: str, theirs: str, resizing: bool) -> dict[str, Tensor]:
    if resizing:
        return _adm_block(unet, ours, f"{theirs}.0")
    state = _adm_block(unet, f"{ours}.residual", f"{theirs}.0")
    if unet.has(f"{theirs}.1.qkv."):
        state |= unet.layer(f"{ours}.attention.norm", f"{theirs}.1.norm")
        state |= unet.layer(f"{ours}.attention.project", f"{theirs}.1.qkv", linear=True)
        state |= unet.layer(f"{ours}.attention.out", f"{theirs}.1.proj_out", linear=True)
    return state


def _adm_block(unet: Layout, ours: str, theirs: str) -> dict[str, Tensor]:
    state = unet.layers(ours, theirs, ADM_RESIDUAL)
    if unet.has(f"{theirs}.skip_connection."):
        state |= unet.layer(f"{ours}.shortcut", f"{theirs}.skip_connection")
    return state


def _conditions(file: Layout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return sizes and tensors of what a mixer is conditioned by."""
    who, how = file.within("label_mapping."), file.within(STYLE)
    positions, places = how.take("pos_emb_0.0"), who.take("pos_emb.0")
    if positions.shape[0] not in GRIDS:
        raise InputError(
            f"{file.where}: {STYLE}pos_emb_0.0 has {positions.shape[0]} rows, which is no grid of "
            f"style patches; accepted are {', '.join(map(str, GRIDS))} rows, of grids of "
            f"{', '.join(map(str, GRIDS.values()))}"
        )
    encoder, depths, size = iresnet_inside(file.found, ENCODER, file.where, DCFACE)
    names = [name for name, known in DEPTHS.items() if known == depths]
    statistics = how.take("channel_weight_0.0")
    convolution = how.take("conv_0.weight")
    state = {
        "identity.feature_position": places[0],
        "identity.positions": places[1:],
        "identity.scale": who.take("scaler.0").reshape(()),
        "style.activation.weight": how.take("relu_0.weight"),
        **how.layer("style.conv", "conv_0"),
        **how.layer("style.bn", "norm_0"),
        "style.bn.running_mean": how.take("norm_0.running_mean"),
        "style.bn.running_var": how.take("norm_0.running_var"),
        "style.bn.num_batches_tracked": how.take("norm_0.num_batches_tracked"),
        "style.mean_weight": statistics[:, 0],
        "style.deviation_weight": statistics[:, 1],
        "style.positions": positions,
        **how.layer("style.norm", "ln_0"),
        **how.layer("adapter.linear", "cross_attn_adapter", linear=True),
        **{f"encoder.{name}": value for name, value in encoder.items()},
    }
    how.finish()
    sizes = {
        "embedding_size": places.shape[1],
        "map_channels": places.shape[1],
        "map_size": math.isqrt(places.shape[0] - 1),
        "style_channels": convolution.shape[1],
        "style_size": size // 2,
        "style_grid": GRIDS[positions.shape[0]],
        "token_channels": positions.shape[1],
        "statistic": "mean_minus_square",
        "identity_encoder": names[0],
        "identity_size": size,
        "identity_layer": "layer4.0",
    }
    return sizes, state


def _idiff_face(file: Layout) -> PublishedDenoiser:
    """Read a U-Net with context attention, or with none."""
    buffers = {name for name in SCHEDULE if name in file.found}
    inner = "eps_model." if file.has("eps_model.") else ""
    unet = file.within(inner)
    if not inner:
        unet.taken |= buffers
    stem = unet.take("image_proj.weight")
    state = unet.layer("stem", "image_proj")
    state |= unet.layer("time.layers.0", "time_emb.lin1")
    state |= unet.layer("time.layers.2", "time_emb.lin2")
    widths, attention, counts = [], [], [0]
    places = len({name.split(".")[1] for name in unet.found if name.startswith("down.")})
    for n in range(places):
        if unet.has(f"down.{n}.conv."):
            state |= unet.layer(f"down.{n}", f"down.{n}.conv")
            counts.append(0)
            continue
        if not counts[-1]:
            widths.append(unet.take(f"down.{n}.res.conv2.weight").shape[0])
            attention.append(unet.has(f"down.{n}.attn."))
        counts[-1] += 1
        state |= _level(unet, f"down.{n}", f"down.{n}")
    if len(set(counts)) > 1:
        raise InputError(f"{unet.where} has levels of {counts} blocks; {unet.accepted}")
    state |= _residual(unet, "middle.0.residual", "middle.res1")
    state |= _attention(unet, "middle.0.attention", "middle.attn")
    state |= _residual(unet, "middle.1.residual", "middle.res2")
    places = len({name.split(".")[1] for name in unet.found if name.startswith("up.")})
    for n in range(places):
        if unet.has(f"up.{n}.conv."):
            state |= unet.layer(f"up.{n}", f"up.{n}.conv")
        else:
            state |= _level(unet, f"up.{n}", f"up.{n}")
    state |= unet.layer("norm", "norm") | unet.layer("out", "final")
    sizes: dict[str, Any] = {
        "latent_channels": stem.shape[1],
        "latent_size": LATENT_SIZE,
        "widths": widths,
        "attention": attention,
        "blocks": counts[0],
        "conditioning": "none",
    }
    if unet.has("context_emb."):
        projected, size = unet.take("context_emb.weight").shape
        expanded = unet.take("middle.attn.c_proj_in.weight").shape[0]
        state |= unet.layer("context.linear", "context_emb")
        sizes |= {
            "conditioning": "cross_attention",
            "context_size": size,
            "context_channels": projected,
            "context_tokens": expanded // projected,
            "cpd_rate": 0.0,
        }
    unet.finish()
    config = {
        "system": "idiff_face",
        "model": sizes,
        "process": _process(file).model_dump(),
        "trained_with": {"autoencoder": ""},
    }
    return PublishedDenoiser(config, state)


def _level(unet: Layout, ours: str, theirs: str) -> dict[str, Tensor]:
    state = _residual(unet, f"{ours}.residual", f"{theirs}.res")
    if unet.has(f"{theirs}.attn."):
        state |= _attention(unet, f"{ours}.attention", f"{theirs}.attn")
    return state


def _residual(unet: Layout, ours: str, theirs: str) -> dict[str, Tensor]:
    state = unet.layers(ours, theirs, UNET_RESIDUAL)
    if unet.has(f"{theirs}.shortcut."):
        state |= unet.layer(f"{ours}.shortcut", f"{theirs}.shortcut")
    return state


def _attention(unet: Layout, ours: str, theirs: str) -> dict[str, Tensor]:
    if unet.has(f"{theirs}.attention."):
        state = unet.layer(f"{ours}.norm", f"{theirs}.norm")
        return state | unet.layers(
            f"{ours}.attention", f"{theirs}.attention", PROJECTIONS, linear=True
        )
    state = unet.layer(f"{ours}.enter", f"{theirs}.x_proj_in")
    state |= unet.layer(f"{ours}.leave", f"{theirs}.x_proj_out")
    state |= unet.layer(f"{ours}.norm", f"{theirs}.x_norm")
    state |= unet.layer(f"{ours}.expand", f"{theirs}.c_proj_in")
    state |= unet.layer(f"{ours}.context_norm", f"{theirs}.c_norm")
    state |= unet.layer(f"{ours}.feed.0", f"{theirs}.ff.0")
    state |= unet.layer(f"{ours}.feed.2", f"{theirs}.ff.2")
    for mine, other in (("within", "self_attention"), ("across", "cross_attention")):
        state |= unet.layers(f"{ours}.{mine}", f"{theirs}.{other}", PROJECTIONS, linear=True)
    return state


def _process(file: Layout) -> Process:
    """Return the noise process that a file's betas are of; InputError where they are not linear."""
    betas = file.found.get("betas")
    if betas is None:
        return Process()
    count = len(betas)
    first, last = round(float(betas[0]), 7), round(float(betas[-1]), 7)
    linear = torch.linspace(first, last, count)
    if not torch.allclose(betas, linear, rtol=1e-4, atol=0.0):
        raise InputError(f"{file.where}: betas are not evenly spaced; accepted are linear ones")
    return Process(timesteps=count, beta_start=first, beta_end=last)


READERS: Mapping[str, tuple[str, Any]] = {
    "dcface": (DCFACE, _dcface),
    "idiff_face": (IDIFF, _idiff_face),
}
