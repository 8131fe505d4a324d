"""state_dict hooks of a module that wraps another as `self.model` and shows the model's own keys."""

from typing import Any

from torch import nn


def drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    """After ``state_dict``: prefix.model.key becomes prefix.key, in the metadata too."""
    nested = prefix + "model."
    # All out before any goes in: the model may have a child of the name "model".
    moved = {key: state.pop(key) for key in list(state) if key.startswith(nested)}
    state.update({prefix + key.removeprefix(nested): value for key, value in moved.items()})
    metadata = getattr(state, "_metadata", {})
    moved = {key: metadata.pop(key) for key in list(metadata) if (key + ".").startswith(nested)}
    metadata.update({(prefix + (key + ".").removeprefix(nested))[:-1]: value for key, value in moved.items()})


def add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *reports: Any) -> None:
    """Before ``load_state_dict``: prefix.key becomes prefix.model.key."""
    module._load_prefix = prefix
    moved = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({prefix + "model." + key.removeprefix(prefix): value for key, value in moved.items()})


def drop_prefix_of_missing(module: nn.Module, incompatible: Any) -> None:
    """After ``load_state_dict``: missing and unexpected keys are reported as the model's own."""
    nested = module._load_prefix + "model."
    for keys in incompatible:
        keys[:] = [module._load_prefix + key.removeprefix(nested) if key.startswith(nested) else key for key in keys]
