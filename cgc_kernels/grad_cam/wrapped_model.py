"""A classifier under its own names, with the output of one of its layers captured."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import compiled_parts, model_checks
from .capture import Capture
from .logits import check_logits, find_logits
from .pooled_head import Head
from .reshape import Reshape
from .wrapped_keys import add_prefix, drop_prefix, drop_prefix_of_missing


class WrappedModel(nn.Module):
    """``model``, the hook on its ``target_layer``, and what is known of the two.

    Attributes and methods that this object does not have are the model's, to read and to set. A public name of this
    object would hide the model's: so all but the documented ones are private to this package.
    """

    def __init__(self, model: nn.Module, target_layer: str, reshape: Reshape | None, head: Head | None):
        super().__init__()
        self.target_layer = target_layer
        self.reshape = reshape
        self.model = model  # from here on what is set and is not named here is the model's
        self._head = head  # the pooled linear head behind the target layer, if it was one at construction
        self._map_is_read = False  # whether a call has shown that the logits read the map
        self._capture = Capture()
        self._open = True
        self._attach()
        self.register_state_dict_post_hook(drop_prefix)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.register_load_state_dict_post_hook(drop_prefix_of_missing)

    def __getattr__(self, name: str) -> Any:
        """The model's own attributes and methods, where this object has none of the name."""
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        # As while it is unpickled: nothing is there yet.
        if "model" not in modules or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(modules["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A public attribute that only the model has is set there: a head that is replaced, for instance."""
        model = self.__dict__.get("_modules", {}).get("model")
        own = name.startswith("_") or name in self.__dict__ or name == "model" or hasattr(type(self), name)
        if model is not None and not own and hasattr(model, name):
            setattr(model, name, value)
        else:
            super().__setattr__(name, value)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As the model's own, and this module under its name; so parameters are named as in ``state_dict()``."""
        memo = set() if memo is None else memo
        if remove_duplicate and self in memo:
            return
        memo.add(self)
        yield prefix, self
        yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_finalizer"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        hooks = self.model.get_submodule(self.target_layer)._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is self._capture]:
            del hooks[key]
        self._attach()
        if not self._open:
            self._finalizer()

    def _attach(self) -> None:
        target = self.model.get_submodule(self.target_layer)
        self._finalizer = weakref.finalize(self, _detach, self.model, target.register_forward_hook(self._capture))
        self._finalizer.atexit = False

    def _prepare(self) -> None:
        """Before a call: modules may have been replaced, compiled or wrapped since the last one."""
        if self._capture not in self.model.get_submodule(self.target_layer)._forward_hooks.values():
            self._finalizer()
            self._attach()
        model_checks.check_ancestors(self.model, self.target_layer)

    def _run(self, view: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
        """The model's logits and the target layer's output for one view."""
        kept = self._capture.kept
        kept.arm(differentiate)
        try:
            logits = find_logits(self.model(view))
            features = kept.take(self.target_layer, self._why_not_called)
        finally:
            kept.disarm()
        check_logits(logits, view)
        return logits, features

    def _why_not_called(self) -> str:
        return model_checks.why_not_called(self.model, self.target_layer)


def _detach(model: nn.Module, handle: RemovableHandle) -> None:
    handle.remove()
    compiled_parts.release(model)
