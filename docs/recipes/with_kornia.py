"""kornia's augmentations on the device; lines that end in `# +` are added or changed."""

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from cgc_kernels import GradCAM, cgc_loss  # +

augment = K.AugmentationSequential(
    K.RandomResizedCrop((64, 64), scale=(0.2, 1.0)),
    K.RandomHorizontalFlip(),
    K.RandomRotation(15.0),
    K.RandomPerspective(0.2),
    K.ColorJiggle(0.2, 0.2, 0.2, 0.05),
    data_keys=["input"],
)


def main():
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = GradCAM(model, "layer4")  # +
    x, y = torch.rand(4, 3, 64, 64), torch.arange(4)
    x_aug = augment(x)
    out, out_aug = model(x, x_aug)  # +
    loss = F.cross_entropy(out.logits, y) + 0.5 * cgc_loss(out.cam, out_aug.cam, augment.transform_matrix)  # +
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
