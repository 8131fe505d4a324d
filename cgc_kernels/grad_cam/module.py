"""The module that gives the logits of every view with the features and gradients of its Grad-CAM."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from ..tracing import constant_result
from . import closed_form_path, model_checks
from .capture import Capture
from .families import find_target
from .logits import find_logits
from .module_facts import user_hooks
from .output import CAM, GradCAMOutput, GradCAMOutputs
from .pooled_head import find_head
from .reshape import Reshape
from .views import check_one_shape, check_views
from .wrapped_model import WrappedModel


class GradCAM(WrappedModel):
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
    the model's, to read and to set (``cam.fc = nn.Linear(...)``), and parameters, modules and ``state_dict()`` have the
    model's own names, so that ``cam.no_weight_decay()`` or timm's ``create_optimizer_v2(cam)`` mean what they mean for
    the model. Its plain logits are ``cam.model(x)``, and ``evaluate(cam.model, loader)`` is a script's own evaluation:
    ``cam.eval()`` and ``cam.train()`` set the model's mode, the weights are the same. Several threads may call one
    GradCAM.

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
        reshape: Reshape | None = None,
        closed_form: bool | str = "auto",
    ):
        model_checks.check_model(model)
        if reshape is not None and not callable(reshape):
            raise TypeError(f"reshape must be callable or None, got {type(reshape).__name__}")
        if not isinstance(closed_form, bool | str) or closed_form not in ("auto", True, False):
            raise ValueError(f'closed_form must be "auto", True or False, got {closed_form!r}')
        name = model_checks.layer_name(model, target_layer)
        model_checks.check_ancestors(model, name)
        head, reason = None, "closed_form=False was asked for"
        if closed_form is not False:
            head, reason = find_head(model, model.get_submodule(name), reshaped=reshape is not None)
        if closed_form is True and head is None:
            raise RuntimeError(f"closed_form must not be True for this model: {reason}")
        super().__init__(model, name, reshape, head)
        self._requested, self._reason = closed_form, reason

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

    def forward(
        self, *views: Tensor, target: Tensor | None = None, extra: Sequence[Tensor] = (), batched: bool = False
    ) -> GradCAMOutputs:
        """Logits and Grad-CAM of every view, then the logits of every extra view.

        ``views``: one or more [B, ...], the same B. ``target``: [B] int64, the class to explain; by default the argmax
        of the first view's logits; or floating-point [B, K], to explain that weighted sum of the logits: one class less
        another, or less the mean of all. ``extra``: views of any batch size of which only the logits are wanted; they
        cost no Grad-CAM and come back with ``cam=None``. ``batched``: call the model once, on all views and extra views
        as one batch (of one trailing shape); faster on a GPU that the views do not fill, but in train mode the
        statistics of BatchNorm are then those of all views together.
        Returns a tuple of one :class:`GradCAMOutput` a view, also for one view: ``(out,) = cam(x)``.
        Raises TypeError or ValueError for wrong arguments; ValueError when the layer's output is not [B, C, H, W], has
        one cell alone, or, by the shape of the views, looks like [B, H, W, C]; RuntimeError when the target layer is
        not called exactly once, its output is modified in place afterwards, the logits do not read its map (looked for
        until a gradient is not zero, usually in the first step), or this GradCAM was closed.
        """
        check_views(views, target, extra)
        if not isinstance(batched, bool):
            raise TypeError(f"batched must be a bool, got {type(batched).__name__}")
        if not self._open:
            raise RuntimeError("GradCAM must be open to be called, got a closed one; build a new GradCAM")
        if getattr(self, "_is_replica", False):
            raise RuntimeError("GradCAM must not run under nn.DataParallel; use DistributedDataParallel")
        if not torch.compiler.is_compiling():
            self._prepare()
        path = self._path()
        explain_views = _explain_batch if batched else _explain_each
        return GradCAMOutputs(explain_views(path, self, views, target, extra))

    def close(self) -> None:
        """Remove the hook; the model is as it was before, and calling this object raises. Harmless when repeated."""
        self._finalizer()
        self._open = False

    def __enter__(self) -> "GradCAM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        return f"target_layer={self.target_layer!r}, gradient_path={self.gradient_path!r}"

    def _path(self) -> ModuleType:
        """Which of the two paths the gradients take now."""
        if self._use_closed_form():
            return closed_form_path
        from . import autograd_path  # not before it is needed: it imports torch._dynamo

        return autograd_path

    def _obstacle(self) -> str:
        """Why the closed form found at construction does not hold now; empty where it does."""
        hooks = user_hooks(self.model.get_submodule(self.target_layer)._forward_hooks)
        foreign = [hook for hook in hooks if hook is self._capture or not isinstance(hook, Capture)]
        if self._open and self._capture in foreign and foreign[-1] is not self._capture:
            return f"{self.target_layer} got another forward hook"
        return self._head.obstacle(self.model)

    @constant_result
    def _use_closed_form(self) -> bool:
        if self._head is None:
            return False
        obstacle = self._obstacle()
        if obstacle and self._requested is True:
            raise RuntimeError(f"closed_form must not be True for this model: {obstacle}")
        return not obstacle


def _explain_each(
    path: ModuleType, cam: GradCAM, views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]
) -> list[GradCAMOutput]:
    """The outputs of all views, the model called for each."""
    outputs = []
    for view in views:
        output, target = path.explain(cam, view, target)
        outputs.append(output)
    return outputs + [GradCAMOutput(find_logits(path.run(cam, view)), None) for view in extra]


def _explain_batch(
    path: ModuleType, cam: GradCAM, views: Sequence[Tensor], target: Tensor | None, extra: Sequence[Tensor]
) -> list[GradCAMOutput]:
    """The outputs of all views from one call of the model."""
    check_one_shape((*views, *extra))
    sizes = [len(view) for view in (*views, *extra)]
    explained = sum(sizes[: len(views)])
    whole, _ = path.explain(cam, torch.cat((*views, *extra)), target, sizes[0], len(views))
    logits = whole.logits.split(sizes)
    features, gradients = (value[:explained].split(sizes[0]) for value in whole.cam[:2])
    cams = [CAM(*fields, whole.cam.image_size) for fields in zip(features, gradients, strict=True)]
    outputs = [GradCAMOutput(*fields) for fields in zip(logits, cams, strict=False)]
    return outputs + [GradCAMOutput(of_extra, None) for of_extra in logits[len(views) :]]
