"""Recipes: frozen, validated descriptions of one run.

There are five kinds. `generate` makes a dataset, `train` makes an autoencoder or a diffusion model,
`fr` makes a recognizer, `compose` makes a view over datasets, and `bank` makes a dataset of
identities. A recipe is a YAML file. `load` reads it, applies `--set` overrides and answers every
mistake with one message that names the field, the value and what would be accepted.
"""

from factory.recipe.addresses import (
    DECIDING,
    FOREIGN,
    OPTIONS,
    Address,
    Addresses,
    file_of,
    keyless,
    local_path,
    public,
    with_options,
)
from factory.recipe.bank import AttributeRule, BankRecipe
from factory.recipe.compose import ComposeRecipe, PoolView
from factory.recipe.digest import bank_digest, canonical, content_digest, digest
from factory.recipe.errors import FaultError, InputError
from factory.recipe.fr import Backbone, FRRecipe, Head
from factory.recipe.generate import (
    Cost,
    GenerateRecipe,
    Identities,
    IdentityDrift,
    NearDuplicate,
    RealLookalike,
    Sampler,
    Screens,
    ShardShape,
)
from factory.recipe.load import KINDS, Recipe, apply, checked, held, load, parse, shipped
from factory.recipe.parts import (
    AUTO,
    Cosine,
    Fraction,
    Image,
    KnownFaces,
    NamedDataset,
    NamedWeights,
    Natural,
    Part,
    Positive,
    Precision,
    Weights,
    Workers,
)
from factory.recipe.precision import (
    R,
    kept_precision,
    precision_field,
    stated_precision,
    with_precision,
)
from factory.recipe.train import (
    Checkpoints,
    Data,
    DeepSpeed,
    Engine,
    Optimizer,
    Precompute,
    Schedule,
    TrainRecipe,
)
