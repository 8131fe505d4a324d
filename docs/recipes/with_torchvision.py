"""torchvision's references/classification/train.py; lines that end in `# +` are added or changed."""

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cgc_kernels import GradCAM, RandomCropFlip, cgc_loss  # +

augment = RandomCropFlip(64)  # + the size of the training crops, args.train_crop_size


def train_one_epoch(model, criterion, optimizer, data_loader, device):
    model.train()
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        image_aug, transform = augment(image)  # +
        out, out_aug = model(image, image_aug)  # + was: output = model(image)
        output = out.logits  # +
        loss = criterion(output, target) + 0.5 * cgc_loss(out.cam, out_aug.cam, transform)  # +
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (output.argmax(1) == target).float().mean()
        print(f"loss {loss.item():.3f}, accuracy {accuracy.item():.2f}")


def evaluate(model, criterion, data_loader, device):
    model.eval()
    with torch.inference_mode():
        losses = [criterion(model(image.to(device)), target.to(device)).item() for image, target in data_loader]
    print(f"test loss {sum(losses) / len(losses):.3f}")


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data_loader = DataLoader(TensorDataset(torch.rand(4, 3, 64, 64), torch.arange(4)), batch_size=4)
    model = torchvision.models.get_model("resnet18", num_classes=10).to(device)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model = GradCAM(model, "layer4")  # + after convert_sync_batchnorm, before DistributedDataParallel
    train_one_epoch(model, criterion, optimizer, data_loader, device)
    evaluate(model.model, criterion, data_loader, device)  # +


if __name__ == "__main__":
    main()
