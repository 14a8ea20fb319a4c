"""Seeds of random draws, as a function of their position (docs/contracts.md 1).

A draw depends on where it is used and never on what was drawn before it. Interrupted, resumed,
reordered or resharded work therefore has the same results.
"""

import hashlib

import numpy as np


def seed64(root: int, stage: str, identity: int = 0, slot: int = 0, attempt: int = 0) -> int:
    """Return the 64-bit seed of one position of a run.

    Args:
        root: the recipe's `seed`, any integer that fits 64 bits signed or unsigned.
        stage: the name of what is drawn, such as "identity" or "noise".
        identity: index of the identity, 0 or more.
        slot: index of the image inside its identity, 0 or more.
        attempt: the n-th try at filling the slot, 0 or more.

    Returns:
        An integer in [0, 2**64). Distinct positions collide with probability 2**-64.
    """
    text = f"{root}/{stage}/{identity}/{slot}/{attempt}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(seed: int) -> np.random.Generator:
    """Return numpy's Philox generator keyed by all 64 bits of `seed`."""
    return np.random.Generator(np.random.Philox(key=seed))


def hex16(seed: int) -> str:
    """Write a 64-bit seed as 16 lower-case hexadecimal digits."""
    return f"{seed:016x}"
