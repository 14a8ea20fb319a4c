"""YAML as values: plain numbers, texts, lists and mappings, whatever was typed.

Duplicate keys are refused, since YAML's own answer is to take the last one in silence. Dates stay
texts, and so do on, off, yes and no, as in YAML 1.2; a field that is true or false takes these
texts too. Aliases that make a text grow without end, or a list that holds itself, are refused
before anything walks through them.
"""

import re
import sys
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from factory.recipe.errors import InputError

MOST_VALUES = 100_000  # of a text, aliases written out
DEEPEST = 50
DATES = "tag:yaml.org,2002:timestamp"
BOOLEANS = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that takes dates for texts, and only true and false for booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (DATES, BOOLEANS)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    BOOLEANS, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def yaml_values(text: str, what: str) -> Any:
    """Return the values that a YAML text holds.

    Args:
        text: one document.
        what: words before an error, as "recipe: FILE".

    Raises:
        InputError: the text is not YAML, holds a key twice, nests deeper than 50 levels or, with
            its aliases written out, is longer than 100,000 values.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, what, [], [0])
        return loader.construct_document(node)
    except RecursionError:
        raise InputError(f"{what}: nested too deep; accepted are {DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        if "integer string conversion" in str(error):
            most = sys.get_int_max_str_digits()
            raise InputError(f"{what}: a number of more than {most} digits") from None
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())[:300]}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check(node: Node, what: str, above: list[Node], seen: list[int]) -> None:
    """Walk through a node as often as it stands somewhere, and refuse what is not to be built."""
    seen[0] += 1
    if seen[0] > MOST_VALUES:
        raise InputError(f"{what}: its aliases, written out, make more than {MOST_VALUES} values")
    if len(above) > DEEPEST:
        raise InputError(f"{what}: nested too deep; accepted are {DEEPEST} levels")
    if any(node is one for one in above):
        raise InputError(
            f"{what}: an alias stands inside what it names; a value cannot hold itself"
        )
    inner: list[Node] = []
    if isinstance(node, MappingNode):
        known: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if key.value in known:
                raise InputError(
                    f"{what}: {key.value[:100]!r} stands twice; each field stands once"
                )
            known.add(key.value)
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        inner = list(node.value)
    for part in inner:
        _check(part, what, [*above, node], seen)
