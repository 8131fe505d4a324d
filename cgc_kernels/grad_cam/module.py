"""Grad-CAM one can train on: the inputs of the heatmap, attached to the graph, for any classifier.

Grad-CAM (Selvaraju et al., ICCV 2017) weighs the features of a layer by the gradient of a class logit with respect to
them. :class:`GradCAM` runs a model on the views of a batch and hands over features and gradients as a :class:`CAM`.
Unlike pytorch-grad-cam it returns them attached, and leaves the model's mode, its ``.grad`` and its hooks alone; unlike
the released code of CGC (Pillai et al., CVPR 2022) it needs no rewritten model, no replaced head and no double backward
for a pooled linear head, and it runs under DistributedDataParallel and ``torch.compile``.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from ..trees import from_iterables
from . import compiled_parts, model_checks
from .capture import Capture
from .families import ToMap, find_target
from .layer_checks import check_aspect, check_layout, is_reached, name_working_layer
from .logits import logits_of
from .module_facts import own_hooks
from .pooled_head import Head, find_head, row_gradients
from .wrapped_keys import add_prefix, drop_prefix, drop_prefix_of_missing

_EAGER = "autograd.grad of a part of the model needs eager mode; see GradCAM.gradient_path"

__all__ = ["CAM", "GradCAM", "GradCAMOutput", "tokens_to_map"]


@from_iterables
class CAM(NamedTuple):
    """What one view's Grad-CAM heatmap is made of.

    ``features``: [B, C, H, W], the output of the target layer. ``gradients``: of the logit of each sample's class with
    respect to them, [B, C, H, W] in the features' dtype, or pooled, [B, C], their mean over H and W. ``image_size``:
    (height, width) of the view, None if it was not [B, C, height, width].
    """

    features: Tensor
    gradients: Tensor
    image_size: tuple[int, int] | None = None


@from_iterables
class GradCAMOutput(NamedTuple):
    """What :class:`GradCAM` returns per view: ``logits`` [B, K] and the ``cam`` (None for an extra view)."""

    logits: Tensor
    cam: CAM | None


class GradCAMOutputs(tuple):
    """A tuple of :class:`GradCAMOutput`, one for each view, also where there is one view; says so if taken for one."""

    __slots__ = ()

    @property
    def logits(self) -> Tensor:
        raise AttributeError(
            "the output of GradCAM must be unpacked, a tuple with one output for each view: (out,) = cam(x), then "
            "out.logits and out.cam; for logits alone, cam.model(x)"
        )

    cam = logits


# Not a leaf, as other subclasses of tuple are: what walks trees must find the tensors.
pytree.register_pytree_node(
    GradCAMOutputs,
    lambda outputs: (list(outputs), None),
    lambda outputs, _: GradCAMOutputs(outputs),
    serialized_type_name="cgc_kernels.GradCAMOutputs",
)


class GradCAM(nn.Module):
    """Wraps a classifier so that one forward gives the logits of every view and the features and gradients of Grad-CAM.

    ``out, out_aug = cam(x, aug)`` calls ``model`` once per view, in order, inside ONE forward of this module, so that
    ``DistributedDataParallel(cam)`` synchronises once a step and ``torch.compile(cam)`` sees one graph. The class
    explained is the argmax of the FIRST view's logits, for all views, unless ``target`` is given.

    Gradients take one of two paths; :attr:`gradient_path` says which one and why:

    - closed form, when what follows the target layer is exactly an average pool to 1x1, flatten, Identity or
      Dropout(p=0), one ``nn.Linear`` or 1x1 convolution, and nothing else reads the layer's output. Then the gradient
      is constant over space and equals ``weight[target] / (H * W)``: returned pooled, [B, C], in the dtype of the
      weight (float32 under autocast), attached to the weight by indexing. No second backward. With ``reshape`` the pool
      may be a mean over the middle dimensions, of [B, H, W, C] or tokens [B, N, C]; if reshape copies what it returns,
      the gradients are [B, C, H, W]. Recognised at construction by reading the source of the ``forward`` methods;
      nothing of the model is run. Hooks, modules, attributes and ``forward`` methods that change later are noticed in
      eager mode; a compiled graph keeps what held when it was compiled.
    - ``torch.autograd.grad`` otherwise, [B, C, H, W], with ``create_graph`` where grad mode is enabled. Training on it
      takes a double backward, which fused attention kernels lack: ``scaled_dot_product_attention`` takes its plain form
      in the forward from the target layer on, and only there. A checkpoint behind the layer runs its attention again
      later: put ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around forward and backward then.

    ``torch.compile(cam)`` compiles the closed form in one graph. On the other path what follows the target layer runs
    eagerly, since a compiled graph has no second derivative; of what comes before, every module with children is
    compiled on its own. Compile the GradCAM, not the model: a model that is compiled already is refused.

    Wrap first: ``DistributedDataParallel(cam)``, ``accelerator.prepare(cam)``. ``fully_shard`` may come before or after
    where there is a closed form, and is refused otherwise. Attributes and methods that this object does not have are
    the model's, and parameters, modules and ``state_dict()`` have the model's own names, so that
    ``cam.no_weight_decay()`` or timm's ``create_optimizer_v2(cam)`` mean what they mean for the model. Its plain logits
    are ``cam.model(x)``, and ``evaluate(cam.model, loader)`` is a script's own evaluation: ``cam.eval()`` and
    ``cam.train()`` set the model's mode, the weights are the same. Several threads may call one GradCAM.

    Under ``torch.no_grad()`` and ``torch.inference_mode()`` all results are detached. Frozen parameters are fine. A
    target layer that the model itself runs in ``no_grad`` gives detached features, one in a reentrant checkpoint is an
    error. The mode (train or eval), the parameters' ``.grad`` and the model used alone are never touched.

    ``state_dict()`` and ``load_state_dict()`` use the model's own keys also when this module is nested in another.
    ``copy.deepcopy`` and pickling give an independent copy. The one forward hook goes with :meth:`close`, at the end of
    a ``with`` block, or when this object is garbage collected.

    Args:
        model: maps a view [B, ...] to logits [B, K], or to an object or dict with such ``logits``; the bare network,
            not wrapped in DataParallel or DDP.
        target_layer: module of ``model``, or its dotted name ("layer4"), called once per forward, whose output is
            [B, C, H, W] or is made so by ``reshape``; see also :meth:`auto`.
        reshape: applied to the layer's output and to its gradients; for token models, see :func:`tokens_to_map`.
        closed_form: "auto", True (raise if it is impossible) or False.

    Raises ValueError or TypeError for arguments that are not as above; RuntimeError if ``closed_form=True`` is asked
    for and impossible, or the model is compiled, prepared by accelerate or in DistributedDataParallel already.

    Example::

        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> cam = GradCAM(net, "0")
        >>> out, out_aug = cam(torch.rand(2, 3, 10, 10), torch.rand(2, 3, 10, 10))
        >>> out.cam.features.shape, out.cam.gradients.shape
        (torch.Size([2, 8, 8, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: str | nn.Module,
        *,
        reshape: Callable[[Tensor], Tensor] | None = None,
        closed_form: bool | str = "auto",
    ):
        super().__init__()
        model_checks.check_model(model)
        if reshape is not None and not callable(reshape):
            raise TypeError(f"reshape must be callable or None, got {type(reshape).__name__}")
        if closed_form not in ("auto", True, False):
            raise ValueError(f'closed_form must be "auto", True or False, got {closed_form!r}')
        self.model = model
        self.target_layer = model_checks.layer_name(model, target_layer)
        model_checks.check_way(model, self.target_layer)
        self.reshape = reshape
        self._requested = closed_form
        self._head, self._reason = self._find_head()
        if closed_form is True and self._head is None:
            raise RuntimeError(f"closed_form must not be True for this model: {self._reason}")
        self._reached = False
        self._capture = Capture()
        self._open = True
        self._attach()
        self.register_state_dict_post_hook(drop_prefix)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.register_load_state_dict_post_hook(drop_prefix_of_missing)

    @classmethod
    def auto(cls, model: nn.Module, *, closed_form: bool | str = "auto") -> "GradCAM":
        """``GradCAM`` with the target layer and the reshape of the model's family.

        Any classifier of torchvision or timm, and others built like them: the layer is the last map before the pool, of
        a model that reads a class token the input of its last attention. ``cam.target_layer`` and ``cam.reshape`` say
        what was chosen; docs/families.md lists the families.
        Raises ValueError, naming what to give, where no layer is known; otherwise as the constructor does.

        Example::

            >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
            >>> GradCAM.auto(net).target_layer
            '0'
        """
        model_checks.check_model(model)
        layer, reshape = find_target(model)
        cam = cls(model, layer, reshape=reshape, closed_form=closed_form)
        if cam._head is not None and cam._head.pooled == (2, 3):  # a proof that the layer's output is a map as it is
            cam.reshape = None
        return cam

    @property
    def closed_form(self) -> bool:
        """Whether the gradients come in closed form."""
        return self._head is not None and not self._obstacle()

    @property
    def gradient_path(self) -> str:
        """Which of the two paths the gradients take, and why, in words."""
        reason = self._reason if self._head is None else self._obstacle()
        if reason:
            return f"autograd: {reason}"
        return f"closed form: {self._head.steps}; gradients = {self._head.linear}.weight[target] / (H * W)"

    def __getattr__(self, name: str) -> Any:
        """The model's own attributes and methods, where this object has none of the name."""
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        # As while it is unpickled: nothing is there yet.
        if "model" not in modules or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(modules["model"], name)

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

    def forward(
        self, *views: Tensor, target: Tensor | None = None, extra: Sequence[Tensor] = (), batched: bool = False
    ) -> GradCAMOutputs:
        """Logits and Grad-CAM of every view, then the logits of every extra view.

        ``views``: one or more [B, ...], the same B. ``target``: [B] int64, the class to explain; by default the argmax
        of the first view's logits. ``extra``: views of any batch size of which only the logits are wanted; they cost no
        Grad-CAM and come back with ``cam=None``. ``batched``: call the model once, on all views and extra views as one
        batch (of one trailing shape); faster on a GPU that the views do not fill, but in train mode the statistics of
        BatchNorm are then those of all views together.
        Returns a tuple of one :class:`GradCAMOutput` a view, also for one view: ``(out,) = cam(x)``.
        Raises TypeError or ValueError for wrong arguments; ValueError when the layer's output is not [B, C, H, W] or,
        by the shape of the views, looks like [B, H, W, C]; RuntimeError when the target layer is not called exactly
        once, its output is modified in place afterwards, the logits do not read its map (looked for until a gradient is
        not zero, usually in the first step), or this GradCAM was closed.
        """
        _check_views(views, target, extra)
        if not self._open:
            raise RuntimeError("GradCAM must be open to be called, got a closed one; build a new GradCAM")
        if getattr(self, "_is_replica", False):
            raise RuntimeError("GradCAM must not run under nn.DataParallel; use DistributedDataParallel")
        if not torch.compiler.is_compiling():
            self._prepare()
        explain, run = self._by_autograd, self._logits
        if self._use_closed_form():
            explain, run = self._by_closed_form, self.model
        if batched:
            outputs = _explain_batch(explain, views, target, extra)
        else:
            outputs = _explain_each(explain, run, views, target, extra)
        return GradCAMOutputs(outputs)

    def close(self) -> None:
        """Remove the hook; the model is as it was before, and calling this object raises. Harmless when repeated."""
        self._finalizer()
        self._open = False

    def __enter__(self) -> "GradCAM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
            self.close()

    def extra_repr(self) -> str:
        return f"target_layer={self.target_layer!r}, gradient_path={self.gradient_path!r}"

    def _attach(self) -> None:
        target = self.model.get_submodule(self.target_layer)
        self._finalizer = weakref.finalize(self, _detach, self.model, target.register_forward_hook(self._capture))
        self._finalizer.atexit = False

    def _prepare(self) -> None:
        """Before a call: modules may have been replaced, compiled or wrapped since the last one."""
        if self._capture not in self.model.get_submodule(self.target_layer)._forward_hooks.values():
            self._finalizer()
            self._attach()
        model_checks.check_way(self.model, self.target_layer)

    def _find_head(self) -> tuple[Head | None, str]:
        if self._requested is False:
            return None, "closed_form=False was asked for"
        return find_head(self.model, self.model.get_submodule(self.target_layer), reshaped=self.reshape is not None)

    def _obstacle(self) -> str:
        """Why the closed form found at construction does not hold now; empty where it does."""
        hooks = own_hooks(self.model.get_submodule(self.target_layer)._forward_hooks)
        foreign = [hook for hook in hooks if hook is self._capture or not isinstance(hook, Capture)]
        if self._open and self._capture in foreign and foreign[-1] is not self._capture:
            return f"{self.target_layer} got another forward hook"
        return self._head.obstacle(self.model)

    @torch.compiler.assume_constant_result
    def _use_closed_form(self) -> bool:
        if self._head is None:
            return False
        obstacle = self._obstacle()
        if obstacle and self._requested is True:
            raise RuntimeError(f"closed_form must not be True for this model: {obstacle}")
        return not obstacle

    def _by_closed_form(
        self, view: Tensor, target: Tensor | None, batch: int | None = None, repeats: int = 1
    ) -> tuple[GradCAMOutput, Tensor]:
        """Logits and CAM of one view, and the target used; of the first ``repeats * batch`` samples, where several
        views of ``batch`` samples come as one."""
        logits, features = self._run(view, differentiate=False)
        target = _target(target, logits[:batch]).repeat(repeats)
        weight = self.model.get_submodule(self._head.linear).weight
        if hasattr(weight, "full_tensor"):
            raise RuntimeError(
                f"the weight of {self._head.linear} must be whole after the model's forward, got a sharded one; leave "
                "that layer to the root's fully_shard, without reshard_after_forward=True"
            )
        if self.reshape is None:
            _check_features(features, view, self.target_layer)
        gradients = row_gradients(weight[target], features, self._head.pooled, self.reshape)
        if self.reshape is not None:
            features = self.reshape(features)
            self._check_map(features, view, proven=True)
        return GradCAMOutput(logits, CAM(features, gradients, _image_size(view))), target

    # This frame alone is skipped, so that it can ask what is compiled with; the island itself is skipped whole.
    @torch.compiler.disable(recursive=False, reason=_EAGER)
    def _by_autograd(
        self, view: Tensor, target: Tensor | None, batch: int | None = None, repeats: int = 1
    ) -> tuple[GradCAMOutput, Tensor]:
        """As :meth:`_by_closed_form`."""
        return self._island(view, target, batch, repeats, compiled_parts.current_backend())

    @torch.compiler.disable(reason=_EAGER)
    def _island(self, view: Tensor, target: Tensor | None, batch, repeats, backend) -> tuple[GradCAMOutput, Tensor]:
        model_checks.check_not_sharded(self.model)
        attach = torch.is_grad_enabled()
        # The capture switches grad mode on in the middle of the model, the context puts it back however that ends.
        with torch.inference_mode(False), torch.set_grad_enabled(attach):
            view, target = _normal(view), _normal(target)
            with compiled_parts.compiled(self.model, self.target_layer, self._capture.kept, backend):
                logits, features = self._run(view, differentiate=True)
            target = _target(target, logits[:batch]).repeat(repeats)
            score, unsure = _score(logits, target), self.reshape is not None and not self._reached
            gradients = _gradients(score, features, attach, self.target_layer, retain=unsure)
            if unsure:
                self._check_reached(gradients, score, features, view)
        # Such a leaf is the capture's own stand-in for an output that needed no gradient.
        if not attach or (features.is_leaf and not view.requires_grad):
            features = features.detach()
        if self.reshape is not None:
            features, gradients = self.reshape(features), self.reshape(gradients)
        self._check_map(features, view, proven=False)
        cam = CAM(features, gradients, _image_size(view))
        return GradCAMOutput(logits if attach else logits.detach(), cam), target

    def _check_map(self, features: Tensor, view: Tensor, proven: bool) -> None:
        """Refuse what is no map of the view; ``proven``: the closed form has shown that the layer's output is one."""
        _check_features(features, view, self.target_layer)
        if isinstance(self.reshape, ToMap):
            check_aspect(features, view, self.target_layer)
        elif self.reshape is None and not proven:
            check_layout(features, view, self.target_layer)

    def _check_reached(self, gradients: Tensor, score: Tensor, features: Tensor, view: Tensor) -> None:
        """Refuse a map that no logit reads; looked at until a gradient is not zero, usually in the first step."""
        reached = is_reached(gradients, score, features, self.reshape)
        if reached is False:
            other = name_working_layer(self.model, view, features, self.reshape)
            remedy = f"{other!r} works" if other else "choose an earlier layer"
            raise RuntimeError(
                f"the logits must read the map of target layer {self.target_layer!r}, got a gradient that is zero "
                f"everywhere (of its output only what reshape drops is read, as a class token's); {remedy}"
            )
        self._reached = reached is True

    @torch.compiler.disable(recursive=False, reason=_EAGER)
    def _logits(self, view: Tensor) -> Any:
        """Of an extra view, or what holds them. What is compiled of the others is compiled of it, and no more: a graph
        of the whole model would change statistics of BatchNorm that the second backward of the others needs."""
        backend = compiled_parts.current_backend()
        return self.model(view) if backend is None else self._logits_in_parts(view, backend)

    @torch.compiler.disable(reason=_EAGER)
    def _logits_in_parts(self, view: Tensor, backend) -> Tensor:
        with compiled_parts.compiled(self.model, self.target_layer, self._capture.kept, backend):
            return self._run(view, differentiate=False)[0]

    def _run(self, view: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
        """The model's logits and the target layer's output for one view."""
        kept = self._capture.kept
        kept.arm(differentiate)
        try:
            logits = logits_of(self.model(view))
            features = kept.take(self.target_layer, self._why_not_called)
        finally:
            kept.disarm()
        _check_logits(logits, view)
        return logits, features

    def _why_not_called(self) -> str:
        return model_checks.why_not_called(self.model, self.target_layer)


def tokens_to_map(height: int, width: int, prefix: int = 1) -> Callable[[Tensor], Tensor]:
    """``reshape`` for token models: drops ``prefix`` leading tokens and lays the rest out as a map.

    ``height`` and ``width``: patches per view; ``prefix``: class and register tokens before them. The callable turns
    [B, prefix + height * width, C] into [B, C, height, width], row by row, and raises ValueError for other shapes.

    Example::

        >>> tokens_to_map(14, 14)(torch.rand(2, 197, 384)).shape
        torch.Size([2, 384, 14, 14])
    """
    return _TokensToMap(height, width, prefix)


class _TokensToMap(NamedTuple):
    # Not a closure: a GradCAM that holds it can be pickled.
    height: int
    width: int
    prefix: int

    def __call__(self, tokens: Tensor) -> Tensor:
        count = self.prefix + self.height * self.width
        if tokens.ndim != 3 or tokens.shape[1] != count:
            raise ValueError(
                f"tokens must have shape [B, {self.prefix} + {self.height} * {self.width}, C], got {list(tokens.shape)}"
            )
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (self.height, self.width))


def _explain_each(
    explain: Callable, run: Callable, views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]
) -> list[GradCAMOutput]:
    """The outputs of all views, the model called for each: by ``explain``, or of extra views by ``run``."""
    outputs = []
    for view in views:
        output, target = explain(view, target)
        outputs.append(output)
    return outputs + [GradCAMOutput(logits_of(run(view)), None) for view in extra]


def _explain_batch(
    explain: Callable, views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]
) -> list[GradCAMOutput]:
    """The outputs of all views from one call of the model."""
    sizes = [len(view) for view in (*views, *extra)]
    explained = sum(sizes[: len(views)])
    whole, _ = explain(torch.cat((*views, *extra)), target, sizes[0], len(views))
    logits = whole.logits.split(sizes)
    features, gradients = (value[:explained].split(sizes[0]) for value in whole.cam[:2])
    cams = [CAM(*own, whole.cam.image_size) for own in zip(features, gradients, strict=True)]
    outputs = [GradCAMOutput(own, cam) for own, cam in zip(logits, cams, strict=False)]
    return outputs + [GradCAMOutput(own, None) for own in logits[len(views) :]]


def _detach(model: nn.Module, handle: RemovableHandle) -> None:
    handle.remove()
    compiled_parts.release(model)


# ---- The gradient of the logits by autograd.


def _normal(tensor: Tensor | None) -> Tensor | None:
    """Not an inference tensor, which autograd could not save."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _score(logits: Tensor, target: Tensor) -> Tensor:
    """sum_b logits[b, target[b]]"""
    return logits[: len(target)].gather(1, target[:, None]).sum()


def _gradients(score: Tensor, features: Tensor, attach: bool, name: str, retain: bool) -> Tensor:
    """d score / d features, with a graph of its own where ``attach``; the score's graph stays where ``retain``."""
    gradients = None
    if score.requires_grad:
        # Autocast is for forwards: a backward inside it would cast what it should not.
        with torch.autocast(score.device.type, enabled=False):
            (gradients,) = torch.autograd.grad(
                score, features, create_graph=attach, retain_graph=attach or retain, allow_unused=True
            )
    if gradients is None:
        raise RuntimeError(
            f"the logits must depend on the output of target layer {name!r}, got no gradient to it; choose a layer "
            "that the logits are made from, with no detach or no_grad of the model in between"
        )
    return gradients


# ---- Checks.


def _check_views(views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]) -> None:
    if not views:
        raise ValueError("views must hold at least one view, got none")
    if not isinstance(extra, tuple | list):
        raise TypeError(f"extra must be a sequence of views, got {type(extra).__name__}")
    for name, group in (("views", views), ("extra", extra)):
        for index, view in enumerate(group):
            if not isinstance(view, Tensor):
                raise TypeError(f"{name}[{index}] must be a tensor [B, ...], got {type(view).__name__}")
            if view.ndim < 1:
                raise ValueError(f"{name}[{index}] must have shape [B, ...], got a scalar")
    batch = views[0].shape[0]
    for index, view in enumerate(views):
        if view.shape[0] != batch:
            raise ValueError(f"views[{index}] must have a batch of {batch} like views[0], got {view.shape[0]}")
    if target is not None:
        _check_target(target, batch)


def _check_target(target: Tensor, batch: int) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor [B] of int64, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64, got {target.dtype}")
    if target.shape != (batch,):
        raise ValueError(f"target must have shape [{batch}], got {list(target.shape)}")


def _target(target: Tensor | None, logits: Tensor) -> Tensor:
    """``target`` checked against the logits, or their argmax."""
    if target is None:
        return logits.detach().argmax(1)
    if target.device != logits.device:
        raise RuntimeError(f"target must be on {logits.device} like the logits, got {target.device}")
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (target < 0) | (target >= logits.shape[1])
        if bad.any():
            index = int(bad.int().argmax())
            got = f"got {int(target[index])} at index {index}"
            raise ValueError(f"target must be in [0, {logits.shape[1]}), {got}")
    return target


def _check_logits(logits: Tensor, view: Tensor) -> None:
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise TypeError(f"the model must return logits [B, K], got {kind} without logits in it")
    if logits.ndim != 2 or logits.shape[0] != view.shape[0]:
        raise ValueError(f"the model must return logits [{view.shape[0]}, K], got {list(logits.shape)}")


def _check_features(features: Tensor, view: Tensor, name: str) -> None:
    if features.ndim != 4:
        raise ValueError(
            f"the output of target layer {name!r} must be [B, C, H, W], got {list(features.shape)}; "
            "give reshape=, tokens_to_map(height, width) for a ViT"
        )
    if features.shape[0] != view.shape[0]:
        raise ValueError(
            f"the output of target layer {name!r} must have batch {view.shape[0]}, got {features.shape[0]}"
        )


def _image_size(view: Tensor) -> tuple[int, int] | None:
    """(height, width) of views [B, C, height, width]; None for others, tokens for instance."""
    return tuple(view.shape[2:]) if view.ndim == 4 else None
