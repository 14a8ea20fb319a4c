"""Recipes: frozen, validated descriptions of one run.

Five kinds exist: `generate` makes a dataset, `train` makes an autoencoder or a diffusion model,
`fr` makes a recognizer, `compose` a view over datasets, `bank` a dataset of identities. A recipe is
a YAML file; `load` reads it, applies `--set` overrides and answers every mistake with one message
that names the field, the value and what would be accepted.
"""

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)


class InputError(ValueError):
    """A mistake in what the user gave; every job answers it with its message and exit code 2."""


class FaultError(RuntimeError):
    """The thing checked is faulty or the run failed; jobs answer it with exit code 1."""


class Part(BaseModel):
    """A frozen part of a recipe that refuses fields it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def public(address: str) -> str:
    """Return an address without user, password or secret query values, fit to be shown."""
    address = re.sub(r"(?<=://)[^/@]*@", "", address)
    secret = r"(?i)([?&][^=&]*(?:key|secret|token|sig|password)[^=&]*=)[^&]*"
    return re.sub(secret, r"\1...", address)


def keyless(address: str, *, what: str = "") -> str:
    """Return an address that may be kept; InputError, begun with `what`, where it holds keys.

    A user without a password is none: a container of Azure's, `anonymous` of a public bucket.
    """
    named = re.sub(r"(?<=://)[^/:@]*@", "", address)
    if public(named) != named:
        raise InputError(
            f"{what}{public(address)} holds credentials, which manifests, cards and records would "
            "keep; accepted is a URL without, and credentials in the environment"
        )
    return address


def _all_keyless(addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for address in (addresses,) if isinstance(addresses, str) else addresses:
        keyless(address)
    return addresses


P = TypeVar("P", bound=BaseModel)
Address = Annotated[str, AfterValidator(keyless)]
Addresses = Annotated[str | tuple[str, ...], AfterValidator(_all_keyless)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AUTO = "auto"
Precision = Literal["auto", "float32", "bfloat16"]


FOREIGN = ("onnx", "arcface_torch", "adaface", "diffusers")  # prefixes of weights others made
OPTIONS = (  # of such weights and of other references: FILE?option=value
    *("channels", "download", "licence", "name", "names", "pixels"),
    *("argument", "range", "size"),
)
DECIDING = ("channels", "names", "pixels")  # what a network computes, in a content digest


class Weights(Part):
    """A file of weights, named by where it lies and what it holds."""

    location: Address = Field(
        description="Path, package:PATH inside the factory package, or URL without credentials; "
        "or one of them behind a prefix, as adaface:FILE?channels=bgr."
    )
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    licence: str = "unknown"


def _named(weights: Any) -> Any:
    """Leave out entries that are null, so that `--set weights.NAME=null` drops one."""
    if not isinstance(weights, dict):
        return weights
    return {name: part for name, part in weights.items() if part is not None}


NamedWeights = Annotated[dict[str, Weights], BeforeValidator(_named)]


def local_path(location: str) -> Path:
    """Resolve a location on local disk; `factory.shards.located` finds what lies behind URLs too.

    `package:` is relative to the installed factory package; of weights of others, as
    `adaface:FILE?channels=bgr`, it is the file that counts.
    """
    file = file_of(location)
    if file.startswith("package:"):
        return Path(str(resources.files("factory"))) / file.removeprefix("package:")
    return Path(file.removeprefix("file://"))


def file_of(location: str) -> str:
    """Return the file of a location: its own address, without the prefix and options of others'."""
    prefix, colon, rest = location.partition(":")
    return with_options(rest)[0] if colon and prefix in FOREIGN else location


def with_options(text: str) -> tuple[str, dict[str, str]]:
    """Split FILE?option=value&option=value into the file and its options.

    What the query of a URL says beyond `OPTIONS` stays with it, such as endpoint_override.
    """
    file, _, query = text.partition("?")
    given = query.split("&") if query else []
    own = [part for part in given if "://" in file and part.partition("=")[0] not in OPTIONS]
    options = parse_qsl("&".join(part for part in given if part not in own), keep_blank_values=True)
    return "?".join([file, "&".join(own)] if own else [file]), dict(options)


class Image(Part):
    """What an image of the dataset is."""

    size: Annotated[int, Field(ge=16, le=1024)] = Field(description="Height and width in pixels.")
    format: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95


class Identities(Part):
    """How many identities and images, and where the identities come from."""

    count: Positive
    images_each: Positive
    source: str = Field(description="How the system draws identities; each system names its own.")
    max_cosine: Cosine = Field(
        default=1.0, description="Two contexts of the bank are never closer than this."
    )


class ShardShape(Part):
    """How many identities and slots one shard holds."""

    identities: Positive
    slots: Positive | None = Field(default=None, description="Default: identities.images_each.")


class Sampler(Part):
    """How a diffusion model is sampled."""

    name: Literal["ddpm", "ddim", "dpmsolver++", "unipc"]
    steps: Positive
    guidance_scale: Annotated[float, Field(ge=1.0)] = Field(
        default=1.0, description="diffusers' convention u + g (c - u); 1 is off."
    )
    eta: Fraction = 0.0
    batch_size: Positive = 16
    dtype: Precision = Field(
        default=AUTO,
        description="auto: bfloat16 where the workers' processors have instructions for it.",
    )


class IdentityDrift(Part):
    """Reject an image whose cosine to its context is further than `tolerance` from the target."""

    tolerance: Annotated[float, Field(gt=0.0, le=2.0)]


class NearDuplicate(Part):
    """Reject an image closer than `max_cosine` to an earlier kept image of the same identity."""

    max_cosine: Cosine


class KnownFaces(Part):
    """Embeddings of real faces under the teacher, named by where they lie and what they are."""

    location: Address = Field(
        description="Path or URL of a .safetensors, .npy or .parquet file, or of a folder of such."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RealLookalike(Part):
    """Reject an image closer than `max_cosine` to any of the embeddings, under the teacher."""

    max_cosine: Cosine
    embeddings: KnownFaces


class Screens(Part):
    """Which images are rejected, and how often a rejected slot is tried again."""

    identity_drift: IdentityDrift | None = None
    near_duplicate: NearDuplicate | None = None
    real_lookalike: RealLookalike | None = None
    max_attempts: Positive = 3


class Pool(Part):
    """The actors that do the work, and what each of them reserves."""

    size: Positive = Field(description="Actors in the pool that renders.")
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = Field(default=1, description="CPU threads of one actor.")
    fused: bool = Field(default=True, description="One actor does all stages of a shard.")
    screen_size: Positive = Field(default=1, description="Actors that screen, when not fused.")
    screen_num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    screen_num_gpus: Annotated[float, Field(ge=0.0)] = 0.0


class Cost(Part):
    """What an image is expected to cost, and who says so."""

    seconds_per_image: tuple[float, float] = Field(description="Low and high, one actor.")
    source: str
    bytes_per_image: Positive = 3000


class GenerateRecipe(Part):
    """A dataset of labelled synthetic faces."""

    kind: Literal["generate"]
    name: str
    seed: int
    system: str
    licence: str
    image: Image
    identities: Identities
    shard: ShardShape
    pool: Pool
    cost: Cost
    weights: NamedWeights = {}
    sampler: Sampler | None = None
    screens: Screens = Screens()
    options: dict[str, Any] = Field(default={}, description="The system's own fields.")

    @model_validator(mode="after")
    def _slots_fit(self) -> "GenerateRecipe":
        if self.shard.slots is not None and self.shard.slots > self.identities.images_each:
            raise ValueError(
                f"shard.slots is {self.shard.slots}, accepted is 1 to identities.images_each "
                f"({self.identities.images_each})"
            )
        return self

    @model_validator(mode="after")
    def _lookalikes_are_seen(self) -> "GenerateRecipe":
        if self.screens.real_lookalike is not None and "teacher" not in self.weights:
            raise ValueError("screens.real_lookalike needs weights.teacher, which is missing")
        return self


class Data(Part):
    """Which datasets a training reads, and how much of them."""

    train: Addresses = Field(description="Folder or URL of a dataset, or several.")
    identities: Positive | None = Field(default=None, description="Use the first N identities.")
    images_each: Positive | None = Field(default=None, description="Use the first N images each.")
    shuffle_labels: bool = Field(default=False, description="A control: labels carry nothing.")
    resize: bool = Field(
        default=False, description="Resize images of another size, bilinearly, to image.size."
    )

    def urls(self) -> tuple[str, ...]:
        """Return the datasets as a tuple, in the order their labels are counted."""
        return (self.train,) if isinstance(self.train, str) else self.train


class Optimizer(Part):
    """The optimizer and its constants."""

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    momentum: Fraction = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="0 is off. A recognizer's network and centres count apart."
    )


class Schedule(Part):
    """How long to train, and how the learning rate moves."""

    name: Literal["constant", "cosine", "steps", "warm_restarts"] = "constant"
    steps: Positive | None = Field(default=None, description="Optimizer steps in all.")
    epochs: Positive | None = Field(default=None, description="Passes over the data.")
    batch_size: Positive = Field(description="Images of one optimizer step, over all workers.")
    warmup: Fraction = Field(default=0.0, description="Share of the training that warms up.")
    milestones: tuple[float, ...] = Field(
        default=(), description="For `steps`: epochs at which lr is divided by ten."
    )
    restart_steps: Positive = Field(default=10_000, description="For `warm_restarts`: T_0.")
    restart_mult: Positive = Field(
        default=1, description="For `warm_restarts`: each is so many times as long as the last."
    )
    final_lr: Fraction = Field(default=0.0, description="For `cosine`: share of lr at the end.")

    @model_validator(mode="after")
    def _one_length(self) -> "Schedule":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"exactly one of schedule.steps ({self.steps}) and schedule.epochs ({self.epochs}) "
                "is accepted"
            )
        return self


class DeepSpeed(Part):
    """How a network that is too large is divided; the last two serve both engines."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = Field(default=False, description="Keep the optimizer's state on the CPU.")
    accumulation_steps: Positive = Field(
        default=1, description="Micro-batches of one optimizer step, on each worker."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Compute blocks twice instead of keeping their activations."
    )


class Engine(Part):
    """What runs the training: plain torch on one worker, or DeepSpeed on many."""

    name: Literal["torch", "deepspeed"]
    workers: Positive = 1
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = 1
    precision: Precision = Field(
        default=AUTO,
        description="auto: bfloat16 where the workers' processors have instructions for it.",
    )
    max_failures: Natural = 2
    deepspeed: DeepSpeed = DeepSpeed()

    @model_validator(mode="after")
    def _torch_is_alone(self) -> "Engine":
        if self.name == "torch" and self.workers != 1:
            raise ValueError(
                f"engine.workers is {self.workers}, engine.name torch accepts 1; use deepspeed"
            )
        return self


class Checkpoints(Part):
    """When a training saves, and how many checkpoints it keeps."""

    every_steps: Positive
    keep: Positive = 2


class Precompute(Part):
    """A pool of actors that runs the frozen networks on all images before the training."""

    sidecar: Address = Field(
        description="Folder or URL of what they make, reachable by all workers."
    )
    actors: Positive = 1
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0


class TrainRecipe(Part):
    """A training of an autoencoder or of a system's diffusion model."""

    kind: Literal["train"]
    name: str
    seed: int
    system: str = Field(description="`autoencoder`, or the system whose denoiser is trained.")
    licence: str
    image: Image
    data: Data
    model: dict[str, Any] = Field(description="Sizes of the network; the system checks them.")
    optimizer: Optimizer
    schedule: Schedule
    engine: Engine
    checkpoint: Checkpoints
    weights: NamedWeights = Field(
        default={}, description="Frozen parts, and `start`: weights to continue from."
    )
    ema: Fraction = Field(default=0.9999, description="Highest decay of the power schedule.")
    options: dict[str, Any] = Field(default={}, description="The system's own fields: losses etc.")
    precompute: Precompute | None = Field(
        default=None, description="Latents and embeddings made by a pool; null: by each worker."
    )


class Backbone(Part):
    """The recognizer's network."""

    name: Literal["r18", "r34", "r50", "r100", "ir_se50", "iresnet", "mobilefacenet"]
    embedding_size: Positive = 512
    widths: tuple[Positive, ...] = Field(default=(), description="For iresnet: four widths.")
    depths: tuple[Positive, ...] = Field(default=(), description="For iresnet: four depths.")
    dropout: Fraction = 0.0


class Head(Part):
    """The margin loss over class centres."""

    name: Literal["cosface", "arcface", "adaface"]
    scale: Annotated[float, Field(gt=0.0)] = 64.0
    margin: Annotated[float, Field(ge=0.0)] = 0.4
    h: Annotated[float, Field(gt=0.0)] = Field(default=0.333, description="AdaFace's h.")
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="Partial FC: share of the class centres that a step compares with."
    )


class FRRecipe(Part):
    """A training of a face recognizer."""

    kind: Literal["fr"]
    name: str
    seed: int
    licence: str
    image: Image
    data: Data
    backbone: Backbone
    head: Head
    optimizer: Optimizer
    schedule: Schedule
    engine: Engine
    checkpoint: Checkpoints
    augment: tuple[str, ...] = Field(default=("flip",), description="Augmentations, in order.")
    benchmarks: Address = Field(
        default="", description="Folder of .bin files, evaluated at the end."
    )


class PoolView(Part):
    """What a composition takes of one pool, a finished dataset."""

    url: Address = Field(description="Folder or URL, without credentials.")
    content_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = Field(
        default="", description="When given, the pool's must be equal."
    )
    identities: Positive | None = Field(
        default=None, description="The first N that qualify, in label order; default: all."
    )
    images_each: Positive | None = Field(
        default=None, description="At most N of each identity; default: all, or as the budget says."
    )
    least_images: Positive = Field(
        default=1, description="An identity with fewer images in the band does not qualify."
    )
    draw: Literal["first", "random"] = Field(
        default="first", description="Images in key order, or in an order drawn by the seed."
    )
    centre_band: tuple[Cosine, Cosine] | None = Field(
        default=None, description="Cosine to the centre: low <= cosine < high; a high of 1 is open."
    )
    weight: Annotated[float, Field(ge=0.0)] = Field(
        default=1.0, description="Share of the image budget, relative to the other pools'."
    )
    repeat: Positive = Field(default=1, description="Times an epoch holds each image taken.")
    identities_of: str = Field(
        default="", description="The pool whose people these are: equal identities, one label."
    )
    real: bool = Field(default=False, description="Photographs of real identities, mixed in.")

    @model_validator(mode="after")
    def _fits(self) -> "PoolView":
        if self.centre_band is not None and not self.centre_band[0] < self.centre_band[1]:
            raise ValueError(f"centre_band is {list(self.centre_band)}, accepted is low < high")
        if self.identities_of and self.identities is not None:
            raise ValueError(
                f"identities is {self.identities}; with identities_of accepted is to leave it out"
            )
        return self


class ComposeRecipe(Part):
    """A composition: a view over pools, from which a recognizer is trained."""

    kind: Literal["compose"]
    name: str
    seed: int
    pools: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], PoolView], Field(min_length=1)
    ]
    images: Positive | None = Field(
        default=None, description="Images of an epoch, repeats counted; default: all of the pools'."
    )
    recognizer: Weights | None = Field(
        default=None, description="Under which `centre_band` is measured; a recognizer reference."
    )
    shard_images: Positive = Field(default=5000, description="Of one shard, when materialised.")

    @model_validator(mode="after")
    def _pools_fit(self) -> "ComposeRecipe":
        for name, view in self.pools.items():
            if view.centre_band is not None and self.recognizer is None:
                raise ValueError(f"recognizer is missing; pools.{name}.centre_band needs one")
            if view.weight != 1.0 and self.images is None:
                raise ValueError(f"images is missing; pools.{name}.weight shares out a budget")
            other = view.identities_of
            if other and (other == name or other not in self.pools):
                raise ValueError(f"pools.{name}.identities_of is {other!r}, accepted: another pool")
            if other and self.pools[other].identities_of:
                raise ValueError(
                    f"pools.{name}.identities_of is {other!r}, which has identities_of itself; "
                    f"accepted is {self.pools[other].identities_of!r}"
                )
            if other and view.weight and not self.pools[other].weight:
                raise ValueError(f"pools.{name}.identities_of is {other!r}, whose weight is 0")
        if not any(view.weight for view in self.pools.values()):
            raise ValueError("pools: every weight is 0; accepted is one or more above 0")
        return self


class NamedDataset(Part):
    """A dataset, named by where it lies and what it holds."""

    url: Address = Field(description="Folder or URL, or package:PATH inside the factory package.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="Of the sha256 of its shards; a wrong one is answered with the right one."
    )


class AttributeRule(Part):
    """Keep faces whose attribute lies in a range, both ends included."""

    attribute: str
    low: float | None = None
    high: float | None = None


class BankRecipe(Part):
    """A bank of identities: one image each, chosen from candidates (DCFace, papers.md 1.3)."""

    kind: Literal["bank"]
    name: str
    seed: int = Field(description="Of the draw.")
    licence: str
    candidates: NamedDataset | None = Field(
        default=None, description="A dataset; the first image of each identity is a candidate."
    )
    generate: GenerateRecipe | None = Field(
        default=None, description="Or what makes the candidates, as OUT-candidates."
    )
    weights: NamedWeights = Field(
        description="`recognizer`, under which faces are compared; `attributes`, if rules need it."
    )
    max_cosine: Cosine = Field(description="r: kept identities stay below this to each other.")
    known: KnownFaces | None = Field(
        default=None, description="Real faces; candidates at r or more to any of them are dropped."
    )
    rules: tuple[AttributeRule, ...] = ()
    count: Positive | None = Field(default=None, description="How many to draw; default: all.")
    draw: Literal["first", "random", "balanced"] = Field(
        default="first", description="In key order, at random, or as many of each group."
    )
    groups: dict[str, tuple[float, ...]] = Field(
        default={}, description="For balanced: attributes, and where their range is cut."
    )
    shard_images: Positive = 1000
    pool: Pool

    @model_validator(mode="after")
    def _complete(self) -> "BankRecipe":
        if (self.candidates is None) == (self.generate is None):
            raise ValueError("exactly one of candidates and generate is accepted")
        if "recognizer" not in self.weights:
            raise ValueError("weights.recognizer is missing")
        if (self.rules or self.groups) and "attributes" not in self.weights:
            raise ValueError("weights.attributes is missing; rules and groups need it")
        if (self.draw == "balanced") != bool(self.groups):
            raise ValueError(f"draw is {self.draw!r} and groups {self.groups}: balanced needs both")
        return self


Recipe = GenerateRecipe | TrainRecipe | FRRecipe | ComposeRecipe | BankRecipe
R = TypeVar("R", GenerateRecipe, TrainRecipe, FRRecipe)
KINDS: dict[
    str,
    type[GenerateRecipe]
    | type[TrainRecipe]
    | type[FRRecipe]
    | type[ComposeRecipe]
    | type[BankRecipe],
] = {
    "generate": GenerateRecipe,
    "train": TrainRecipe,
    "fr": FRRecipe,
    "compose": ComposeRecipe,
    "bank": BankRecipe,
}


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = (), kind: str = "") -> Recipe:
    """Read a recipe file and apply `path=value` overrides.

    Args:
        path: a YAML file.
        overrides: strings such as `identities.count=20`; the value is read as YAML.
        kind: when given, the only kind accepted.

    Raises:
        InputError: the file is missing or not YAML, or a field is unknown, missing or wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"recipe: no file {path}; accepted is the path of a YAML recipe")
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"recipe: {path} holds {type(raw).__name__}, accepted is a mapping")
    for override in overrides:
        apply(raw, override)
    if kind and raw.get("kind") != kind:
        raise InputError(f"recipe field kind: {raw.get('kind')!r}; this job accepts {kind!r}")
    return parse(raw)


def parse(raw: dict[str, Any]) -> Recipe:
    """Validate a mapping as a recipe of the kind it names; raises InputError."""
    if raw.get("kind") not in KINDS:
        raise InputError(f"recipe field kind: {raw.get('kind')!r}; accepted: {', '.join(KINDS)}")
    return checked(KINDS[raw["kind"]], raw, "recipe field ")


def checked(model: type[P], raw: dict[str, Any], what: str) -> P:
    """Validate `raw` as `model`; InputError names each faulty field.

    Args:
        model: the part to make.
        raw: its fields.
        what: words before each field's name, such as "recipe field ".
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(model, fault, what) for fault in error.errors()]
        raise InputError("; ".join(faults)) from None


def _explain(model: type[BaseModel], fault: Any, what: str) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "(whole)"
    if fault["type"] == "extra_forbidden":
        names = _accepted(model, fault["loc"][:-1]) or ["no field"]
        return f"{what}{field}: unknown; accepted: {', '.join(names)}"
    if fault["type"] == "missing":
        return f"{what}{field}: missing"
    if fault["type"] == "value_error":
        return f"{what}{field}: {fault['ctx']['error']}"
    given = public(repr(fault["input"]))
    return f"{what}{field}: {given}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _accepted(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the field names of the part at `loc` inside `model`."""
    for name in loc:
        if name not in model.model_fields:
            break
        annotation = model.model_fields[name].annotation
        parts = [annotation, *getattr(annotation, "__args__", ())]
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return sorted(model.model_fields)


def apply(raw: dict[str, Any], override: str) -> None:
    """Set a field of a mapping, `path=value`, the value read as YAML; raises InputError."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override!r}: accepted is path=value, as identities.count=20")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {path}: {text!r} is not a YAML value") from error
    *parents, leaf = path.split(".")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise InputError(f"--set {path}: {name} is not a group of fields")
    raw[leaf] = value


def canonical(recipe: BaseModel) -> str:
    """Return the recipe as JSON with sorted keys and no spaces: equal recipes, equal text."""
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Return 16 hex digits naming a recipe or any JSON value by its content."""
    if isinstance(value, BaseModel):
        text = canonical(value)
    else:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def precision_field(recipe: GenerateRecipe | TrainRecipe | FRRecipe) -> str:
    """Return the name of the field that states the precision; "" where a recipe has none."""
    if isinstance(recipe, GenerateRecipe):
        return "sampler.dtype" if recipe.sampler else ""
    return "engine.precision"


def stated_precision(recipe: GenerateRecipe | TrainRecipe | FRRecipe) -> str:
    """Return the precision a recipe states: float32, bfloat16 or auto; "" where it has none."""
    value: Any = recipe
    for name in filter(None, precision_field(recipe).split(".")):
        value = getattr(value, name)
    return value if isinstance(value, str) else ""


def with_precision(recipe: R, precision: str) -> R:
    """Return the recipe with its `auto` replaced by a precision; unchanged where it states one."""
    if stated_precision(recipe) != AUTO:
        return recipe
    raw = recipe.model_dump(mode="json")
    apply(raw, f"{precision_field(recipe)}={precision}")
    return checked(type(recipe), raw, "recipe field ")


def kept_precision(recipe: R, held: Any) -> R:
    """Return the recipe with the precision that an output is claimed with, where it says `auto`.

    Args:
        recipe: what is to be made there.
        held: the recipe in the output's claim, as JSON values; None where there is no claim.

    Raises:
        InputError: the claim states no precision that is known.
    """
    for name in filter(None, precision_field(recipe).split(".")):
        held = held.get(name) if isinstance(held, dict) else None
    return recipe if held is None else with_precision(recipe, held)


def bank_digest(recipe: GenerateRecipe) -> str:
    """Return the digest of what decides the identity bank.

    Counts are left out: a bank packed greedily in key order is a prefix of any longer one.
    """
    identities = recipe.identities.model_dump(mode="json", exclude={"count", "images_each"})
    return digest({"identities": identities, **_pixels(recipe)})


def content_digest(recipe: GenerateRecipe, versions: dict[str, str]) -> str:
    """Return the digest of only what changes pixels; it stands in every sidecar and names pools.

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
    """Return what screens decide by: of embeddings their sha256, not where they lie."""
    decides = screens.model_dump(mode="json", exclude={"real_lookalike"})
    rule = screens.real_lookalike
    if rule is not None:  # absent, it leaves the digest as it was before the screen was known
        decides["real_lookalike"] = [rule.max_cosine, rule.embeddings.sha256]
    return decides


def _pixels(recipe: GenerateRecipe) -> dict[str, Any]:
    assert stated_precision(recipe) != AUTO, "what auto means is settled before a digest is taken"
    sampler = recipe.sampler.name if recipe.sampler else ""
    clipped = sampler in ("ddpm", "ddim") and "autoencoder" not in recipe.weights
    since = {"clipped": True} if clipped else {}  # absent, digests are those of before it was done
    return since | {
        "seed": recipe.seed,
        "system": recipe.system,
        "size": recipe.image.size,
        "options": _without_urls(recipe.options),
        "weights": {name: _network(part) for name, part in recipe.weights.items()},
        "sampler": recipe.sampler.model_dump(mode="json") if recipe.sampler else None,
        "threads": recipe.pool.threads,
    }


def _network(weights: Weights) -> str:
    """Return what names a network: its file's sha256, and options that change what it computes."""
    options = with_options(weights.location)[1]
    stated = sorted((name, options[name]) for name in DECIDING if name in options)
    return "?".join([weights.sha256, urlencode(stated)] if stated else [weights.sha256])


def _without_urls(options: Any) -> Any:
    """Return options without the places of the datasets they name by url and digest."""
    if isinstance(options, dict):
        kept = options.keys() - {"url"} if "digest" in options else options.keys()
        return {name: _without_urls(options[name]) for name in kept}
    return options
