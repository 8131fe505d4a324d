"""What the names and expressions of a forward stand for while it is read."""

from typing import Any, NamedTuple


class Unreadable(Exception):
    """Why what follows the target layer is not known."""


class Followed:
    """The followed value: the target layer's output, or what a step made of it. ``source``: what made it, in words."""

    def __init__(self, source: str):
        self.source, self.uses = source, 0


class Known(NamedTuple):
    """A Python object, read without running anything; ``known`` is False of :data:`UNKNOWN` alone."""

    value: Any
    known: bool = True


class Method(NamedTuple):
    """A function bound to an object; of the followed value, the name of a tensor's method."""

    function: Any
    owner: Any


UNKNOWN = Known(object(), False)
Value = Followed | Known | Method

# Attributes that tell of a tensor without reading what it holds.
METADATA = {"shape", "ndim", "dtype", "device"}

_PLAIN = (bool, int, float, str, tuple, list, type(None))


def is_plain(thing: Any) -> bool:
    """Whether a Python object is a number, a string or None, or a tuple or list of them."""
    if isinstance(thing, tuple | list):
        return all(map(is_plain, thing))
    return isinstance(thing, _PLAIN)


def known_truth(value: Value) -> bool | None:
    """Whether a plain known value is true; None of any other."""
    return bool(value.value) if isinstance(value, Known) and is_plain(value.value) else None


def find_followed(args: list[Value], kwargs: dict[str, Value]) -> Followed | None:
    """The followed value among the arguments of a call; raises Unreadable if it is there twice."""
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, Followed)]
    if len(found) > 1:
        raise Unreadable(f"the output of {found[0].source} is used twice in one call")
    return found[0] if found else None
