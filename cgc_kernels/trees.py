"""Named tuples that survive walks over trees of tensors."""

import functools

from torch import Tensor


def from_iterables(cls: type) -> type:
    """Let a NamedTuple be made from one iterable of its fields, too: ``type(data)(moved for each of data)``.

    So tuples are rebuilt by code that knows no named ones (Hugging Face's Trainer), while default collates, pin_memory,
    pytrees, accelerate and Lightning give the fields one by one.
    """
    by_fields = cls.__new__

    @functools.wraps(by_fields)
    def new(cls, *fields, **named):
        if len(fields) == 1 and not named and not isinstance(fields[0], Tensor):
            fields = tuple(fields[0])
        return by_fields(cls, *fields, **named)

    # Not a subclass: what asks for a named tuple (Dynamo, older pytrees) looks for `tuple` right above it.
    cls.__new__ = new
    return cls
