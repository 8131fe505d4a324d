"""What a module is under the hooks and classes that PyTorch itself adds to it."""

import sys

from torch import nn


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to the module itself."""
    # Where it was, it has been imported; importing it here would double the time of importing this package.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def plain_type(module: nn.Module) -> type:
    """The class that a module had before ``fully_shard``."""
    return type(module).__mro__[2] if is_fully_sharded(module) else type(module)


def user_hooks(hooks: dict) -> list:
    """The hooks of a module that ``fully_shard`` did not put there; those hand on what they get."""
    return [hook for hook in hooks.values() if type(getattr(hook, "__self__", None)).__name__ != "FSDPState"]


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a hook may change what the module returns, or its gradient."""
    return bool(user_hooks(module._forward_hooks) or module._backward_hooks or module._backward_pre_hooks)


def has_pre_hooks(module: nn.Module) -> bool:
    """Whether a hook may change what the module gets."""
    return bool(user_hooks(module._forward_pre_hooks))


def path_to(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules from the model to the one of a dotted name, both included."""
    path = [model]
    for part in name.split(".") if name else ():
        path.append(getattr(path[-1], part))
    return path
