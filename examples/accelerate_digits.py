"""A small network on scikit-learn's digits, with Accelerate."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cpfast.integrations.accelerate import prepare

EPOCHS = 30


def main() -> None:
    torch.manual_seed(0)
    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    training = TensorDataset(images[:1437], digits[:1437])
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(training, batch_size=32 // accelerator.num_processes, shuffle=True)
    course, loader = prepare(accelerator, loader, EPOCHS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    seen = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for epoch in course.epochs(model, optimizer):
        for (inputs, target), index in loader:
            loss = course.pruner.loss(model(inputs), target, index)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            seen += len(inputs)
        if (epoch + 1) % 10 == 0:
            accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    seen = accelerator.reduce(seen)
    with torch.no_grad():
        predicted = model(images[1437:].to(accelerator.device)).argmax(1).cpu()
    accuracy = (predicted == digits[1437:]).float().mean()
    accelerator.print(f"test accuracy {accuracy:.2%} after {seen.item()} samples")
    accelerator.end_training()


if __name__ == "__main__":
    main()
