"""A loop under accelerate; lines that end in `# +` are added or changed."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from cgc_kernels import GradCAM, RandomCropFlip, cgc_loss  # +


def main():
    accelerator = Accelerator()
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 64, 64), torch.arange(4)), batch_size=4)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = GradCAM(model, "layer4")  # + before prepare
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, y in loader:
        x_aug, transform = RandomCropFlip(64)(x)  # +
        out, out_aug = model(x, x_aug)  # + was: logits = model(x)
        loss = F.cross_entropy(out.logits, y) + 0.5 * cgc_loss(out.cam, out_aug.cam, transform)  # +
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    evaluate(accelerator.unwrap_model(model).model, loader)  # +


def evaluate(model, loader):
    model.eval()
    with torch.inference_mode():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    print(f"{correct} of {len(loader.dataset)} right")


if __name__ == "__main__":
    main()
