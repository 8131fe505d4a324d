"""timm's train.py; lines that end in `# +` are added or changed."""

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch.utils.data import DataLoader, TensorDataset

from cgc_kernels import GradCAM, RandomCropFlip, cgc_loss  # +


class CGCTask(ClassificationTask):  # +
    def forward(self, input, target):  # +
        input_aug, transform = RandomCropFlip(input.shape[-2:])(input)  # +
        out, out_aug = self.trainable_module(input, input_aug)  # +
        loss = self.criterion(out.logits, target) + 0.5 * cgc_loss(out.cam, out_aug.cam, transform)  # +
        return {"loss": loss, "output": out.logits}  # +


def train_one_epoch(loader, task, optimizer):
    task.train()
    for input, target in loader:
        result = task(input, target)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        task.update_ema()
        print(f"loss {result['loss'].item():.3f}")


def validate(model, loader, evaluator):
    model.eval()
    with torch.inference_mode():
        for input, target in loader:
            evaluator.update(model(input), target)
    print(evaluator.compute())


def main():
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 64, 64), torch.arange(4)), batch_size=4)
    model = timm.create_model("resnet10t", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
    task = CGCTask(GradCAM(model, "layer4"), criterion_kwargs={"smoothing": 0.1})  # +
    task.eval_model = model  # +
    task.setup_ema()
    task.eval_model_ema = task.trainable_module_ema.module.model  # +
    train_one_epoch(loader, task, optimizer)
    for ema in (False, True):
        validate(task.get_eval_model(ema=ema), loader, task.create_evaluator())


if __name__ == "__main__":
    main()
