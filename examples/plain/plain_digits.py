"""A small network on scikit-learn's digits, in a loop of one's own."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 30


def main() -> None:
    torch.manual_seed(0)
    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    training = TensorDataset(images[:1437], digits[:1437])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(training, batch_size=32, shuffle=True)

    seen = 0
    for epoch in range(EPOCHS):
        for inputs, target in loader:
            loss = nn.functional.cross_entropy(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(inputs)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}, {seen} samples seen")

    with torch.no_grad():
        accuracy = (model(images[1437:]).argmax(1) == digits[1437:]).float().mean()
    print(f"test accuracy {accuracy:.2%} after {seen} samples")


if __name__ == "__main__":
    main()
