"""albumentations in the data set; lines that end in `# +` are added or changed."""

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from cgc_kernels import GradCAM, cgc_loss, homography  # +

finish = A.Compose([A.Normalize(), ToTensorV2()])
augment = A.Compose(
    [A.HorizontalFlip(), A.Affine(scale=(0.7, 1.3), rotate=(-15, 15), p=1), A.Perspective(), A.ColorJitter()],
    keypoint_params=A.KeypointParams("xy", remove_invisible=False),  # +
)
points = np.array([(x, y) for x in (5, 32, 59) for y in (5, 32, 59)], dtype=np.float32)  # + inside the image


class Pairs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        aug = augment(image=image, keypoints=points)  # +
        matrix = homography(torch.from_numpy(points), torch.from_numpy(aug["keypoints"]))  # +
        return finish(image=image)["image"], finish(image=aug["image"])["image"], matrix, index  # +


def main():
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = GradCAM(model, "layer4")  # +
    for x, x_aug, matrix, y in DataLoader(Pairs(), batch_size=4):
        out, out_aug = model(x, x_aug)  # +
        loss = F.cross_entropy(out.logits, y) + 0.5 * cgc_loss(out.cam, out_aug.cam, matrix)  # +
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
