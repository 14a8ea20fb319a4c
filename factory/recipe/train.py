"""Recipes of kind `train`: an autoencoder or a diffusion model."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from factory.recipe.addresses import Address, Addresses
from factory.recipe.parts import (
    AUTO,
    NUMBER,
    Cpus,
    Fraction,
    Gpus,
    Image,
    Licence,
    Name,
    NamedWeights,
    Natural,
    Part,
    Positive,
    Precision,
    Seed,
)

POWER = 2.0


class Data(Part):
    """Which datasets a training reads, and how much of them."""

    train: Addresses = Field(description="Folder or URL of a dataset, or several.")
    identities: Positive | None = Field(default=None, description="Use the first N identities.")
    images_each: Positive | None = Field(default=None, description="Use the first N images each.")
    shuffle_labels: bool = Field(default=False, description="A control: shuffle the labels.")
    resize: bool = Field(
        default=False, description="Resize images of another size to image.size, bilinearly."
    )

    def urls(self) -> tuple[str, ...]:
        """Return the datasets as a tuple, in the order their labels are counted."""
        return (self.train,) if isinstance(self.train, str) else self.train


class Optimizer(Part):
    """The optimizer and its constants."""

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, NUMBER, Field(gt=0.0)]
    weight_decay: Annotated[float, NUMBER, Field(ge=0.0)] = 0.0
    momentum: Fraction = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: Annotated[float, NUMBER, Field(ge=0.0)] = Field(
        default=0.0, description="Largest norm of gradients; 0 is off. Centres are clipped apart."
    )
    decay_norms: bool = Field(
        default=True,
        exclude_if=lambda decays: decays is True,  # digests are those of before it was known
        description="Whether weight decay pulls at batch normalisations' weights and biases too.",
    )


class Schedule(Part):
    """How long to train, and how the learning rate moves."""

    name: Literal["constant", "cosine", "polynomial", "steps", "warm_restarts"] = "constant"
    steps: Positive | None = Field(default=None, description="Optimizer steps in all.")
    epochs: Positive | None = Field(default=None, description="Passes over the data.")
    batch_size: Positive = Field(description="Images of one optimizer step, over all workers.")
    warmup: Fraction = Field(default=0.0, description="Share of the training that warms up.")
    milestones: tuple[float, ...] = Field(
        default=(), description="For `steps`: epochs at which lr is divided by ten."
    )
    restart_steps: Positive = Field(default=10_000, description="For `warm_restarts`: T_0.")
    restart_mult: Positive = Field(
        default=1, description="For `warm_restarts`: how many times longer each is than the last."
    )
    final_lr: Fraction = Field(
        default=0.0, description="For `cosine`, `polynomial`: share of lr at the end."
    )
    power: Annotated[float, Field(gt=0.0)] = Field(
        default=POWER,
        exclude_if=lambda power: power == POWER,  # digests are those of before it was known
        description="For `polynomial`: of the share of the training that is left.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "Schedule":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"exactly one of schedule.steps ({self.steps}) and schedule.epochs ({self.epochs}) "
                "is accepted"
            )
        return self


class DeepSpeed(Part):
    """How DeepSpeed divides a network. The last two fields serve both engines."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = Field(default=False, description="Keep the optimizer's state on the CPU.")
    accumulation_steps: Positive = Field(
        default=1, description="Micro-batches of one optimizer step, on each worker."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Recompute blocks instead of keeping their activations."
    )


class Engine(Part):
    """The engine that runs the training: torch on one worker, or DeepSpeed on many."""

    name: Literal["torch", "deepspeed"]
    workers: Positive = 1
    num_cpus: Cpus = 1.0
    num_gpus: Gpus = 0.0
    threads: Positive = 1
    precision: Precision = Field(
        default=AUTO,
        description="auto: bfloat16 if the workers' processors are faster in it.",
    )
    max_failures: Natural = 2
    deepspeed: DeepSpeed = DeepSpeed()

    @model_validator(mode="after")
    def _torch_is_alone(self) -> "Engine":
        if self.name == "torch" and self.workers != 1:
            raise ValueError(
                f"engine.workers is {self.workers}; several need engine.name: deepspeed"
            )
        return self


class Checkpoints(Part):
    """When a training saves, and how many checkpoints it keeps."""

    every_steps: Positive
    keep: Positive = 2


class Precompute(Part):
    """Actors that run the frozen networks on all images before the training."""

    sidecar: Address = Field(description="Folder or URL for the results, reachable by all workers.")
    actors: Positive = 1
    num_cpus: Cpus = 1.0
    num_gpus: Gpus = 0.0


class TrainRecipe(Part):
    """A training of an autoencoder or of a system's diffusion model."""

    kind: Literal["train"]
    name: Name
    seed: Seed
    system: Name = Field(description="`autoencoder`, or the system whose denoiser is trained.")
    licence: Licence
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
        default=None, description="Actors that make latents and embeddings; null: each worker does."
    )

    @model_validator(mode="after")
    def _keeps_labels(self) -> "TrainRecipe":
        if self.data.shuffle_labels:
            raise ValueError("data.shuffle_labels is true; accepted with a recipe of kind fr alone")
        return self
