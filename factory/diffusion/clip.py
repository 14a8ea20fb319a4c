"""CLIP's text encoder as transformers stores it, one of whose tokens may be a given vector.

`transformers:FOLDER/model.safetensors`, or `pytorch_model.bin`, names its weights, with
`config.json` beside them (`factory.diffusion.folders`). Sizes are read from the config; heads of 64
channels, the activation and the epsilon are CLIP's, which the config has to say too. transformers
is an optional dependency, the extra `arc2face`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from factory.datasets.located import local_file
from factory.datasets.provenance import checked_sha256
from factory.diffusion.files import check_shapes, put_state
from factory.diffusion.folders import CONFIG, read_config
from factory.recipe import InputError, Part, Positive, Weights, checked, prefix_of
from factory.recognition.tensors import read_tensors

FOLDER, TEXT = "transformers", "clip_text_model"
HEAD = 64  # channels of a head of attention, in every published size
ACCEPTED = (
    "accepted is transformers:FOLDER/model.safetensors or pytorch_model.bin, a CLIPTextModel with "
    f"its {CONFIG} beside it"
)
SIZES = {  # ours -> CLIPTextConfig's
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "layers": "num_hidden_layers",
    "places": "max_position_embeddings",
}
HEADS = "num_attention_heads"
UNSEEN = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
OUTER = "text_model."  # before the names in files that older versions wrote
COUNTER = "embeddings.position_ids"  # 0, 1, 2 ..., which older files hold too


class TextConfig(Part):
    """Sizes of the encoder; the defaults are those of CLIP ViT-L/14."""

    vocabulary: Positive = 49_408
    width: Positive = 768
    inner: Positive = 3_072
    layers: Positive = 12
    places: Positive = 77


class TextEncoder(nn.Module):
    """transformers' CLIPTextModel, with a vector of one's own in the place of a token's."""

    def __init__(self, config: TextConfig) -> None:
        """Make the network with fresh weights.

        Raises:
            InputError: transformers is not installed.
        """
        super().__init__()
        try:
            from transformers import CLIPTextConfig, CLIPTextModel
        except ImportError as error:
            raise InputError(
                "recipe field weights.encoder.location: transformers is not installed; "
                "pip install 'face-data-factory[arc2face]'"
            ) from error
        self.config = config
        fields: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
        fields |= {**UNSEEN, HEADS: config.width // HEAD}
        # Special tokens only pick a pooled state, which nobody asks for.
        fields |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
        self.model = CLIPTextModel(CLIPTextConfig(**fields))

    def forward(self, ids: Tensor, place: int = 0, vectors: Tensor | None = None) -> Tensor:
        """Return the last states of all tokens, after the final norm, float32 [B, n, width].

        Args:
            ids: token ids, integers [B, n].
            place: which of the n tokens the vectors replace.
            vectors: float [B, width], input embeddings before positions are added; None for none.
        """
        if vectors is None:
            return self.model(input_ids=ids).last_hidden_state.float()

        def replaced(module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
            before, after = embedded[:, :place], embedded[:, place + 1 :]
            return torch.cat([before, vectors[:, None].to(embedded.dtype), after], dim=1)

        # The model's own code takes ids alone; where it keeps its embedding differs by version.
        hook = self.model.get_input_embeddings().register_forward_hook(replaced)
        try:
            return self.model(input_ids=ids).last_hidden_state.float()
        finally:
            hook.remove()


def read_text_config(weights: Weights, name: str) -> TextConfig:
    """Return the sizes that the config beside a text encoder's weights states.

    Args:
        weights: the file of weights.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: the config is missing or of something else.
    """
    field = f"recipe field weights.{name}.location"
    if prefix_of(weights.location) != FOLDER:
        raise InputError(f"{field}: {weights.location}; {ACCEPTED}")
    raw, path = read_config(weights, field, ACCEPTED)
    kind = raw.get("model_type") or raw.get("_class_name") or "no type"
    if kind != TEXT:
        raise InputError(f"{field}: {path} is of {kind}; {ACCEPTED}")
    lacking = [theirs for theirs in (*SIZES.values(), HEADS) if theirs not in raw]
    if lacking:
        raise InputError(f"{field}: {path} states no {lacking[0]}; {ACCEPTED}")
    sizes = {ours: raw[theirs] for ours, theirs in SIZES.items()}
    config = checked(TextConfig, sizes, f"{field}: {path} ")
    if config.width % HEAD:
        raise InputError(
            f"{field}: {path} has hidden_size {config.width}; accepted is a multiple of {HEAD}"
        )
    for key, wanted in {**UNSEEN, HEADS: config.width // HEAD}.items():
        if raw.get(key, wanted) != wanted:
            raise InputError(f"{field}: {path} has {key} {raw[key]!r}; accepted is {wanted!r}")
    return config


def check_text_encoder(weights: Weights, name: str) -> TextConfig:
    """Return a text encoder's sizes, after a look at its tensors; nothing is computed.

    Raises:
        InputError: as `load_text_encoder`.
    """
    config = read_text_config(weights, name)
    with torch.device("meta"):
        network = TextEncoder(config)
    check_shapes(weights, name, network.state_dict(), _state(weights, name, network))
    return config


def load_text_encoder(weights: Weights, name: str) -> TextEncoder:
    """Build the text encoder of a folder of transformers, frozen and in evaluation mode.

    Args:
        weights: the file of weights in the folder, read without running code.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: a file is missing, changed or something else, its tensors do not fit its config,
            or transformers is not installed.
    """
    checked_sha256(name, weights)
    network = TextEncoder(read_text_config(weights, name))
    put_state(weights, network, name, _state(weights, name, network))
    return network.eval().requires_grad_(False)


def _state(weights: Weights, name: str, network: TextEncoder) -> dict[str, Tensor]:
    """Return the file's tensors under the network's names, which differ by version."""
    field = f"recipe field weights.{name}.location"
    path = local_file(weights.location, field, ACCEPTED)
    found = read_tensors(path, field, accepted=ACCEPTED)
    bare = {key.removeprefix(OUTER): value for key, value in found.items()}
    own = {key.removeprefix("model.").removeprefix(OUTER): key for key in network.state_dict()}
    return {own.get(key, key): value for key, value in bare.items() if key != COUNTER}
