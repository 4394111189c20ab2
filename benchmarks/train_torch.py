"""Worker: trains ConvNetSI in PyTorch as a PyTorch user would, with the data on the device and nothing recorded."""

import argparse
import time
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.common import serve

VARIANTS = ("eager", "compiled", "stacked", "cuda_graph")


def network(width: int, channels: int, running_statistics: bool = True) -> nn.Sequential:
    """ConvNetSI of depth 3, with a head of norm 10 that is not trained."""
    layers: list[nn.Module] = []
    sizes = [channels, width, 2 * width, 4 * width, 8 * width]
    for i in range(4):
        layers += [nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(sizes[i + 1], affine=False, track_running_stats=running_statistics), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i else []
    head = nn.Linear(sizes[-1], 10)
    with torch.no_grad():
        head.weight *= 10 / head.weight.norm()
    head.requires_grad_(False)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)


class Data:
    """Normalised images on the device, and random mini-batches of them."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        shape = (1500, options.channels, options.size, options.size)
        self.images = torch.randn(shape, device=device)
        if options.channels_last:
            self.images = self.images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (1500,), device=device)
        self.batch = options.batch
        self.order = torch.randperm(1500, device=device)
        self.place = 0

    def rows(self) -> torch.Tensor:
        """Indices of the next mini-batch."""
        if self.place + self.batch > len(self.order):
            self.order, self.place = torch.randperm(len(self.order), device=self.order.device), 0
        self.place += self.batch
        return self.order[self.place - self.batch : self.place]


def one_by_one(options: argparse.Namespace, device: torch.device) -> Any:
    """One configuration after the other; each costs the same, so one is timed."""
    model = network(options.width, options.channels).to(device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), lr=0.01, weight_decay=1e-3, fused=True
    )
    data = Data(options, device)

    def forward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            return F.cross_entropy(model(images), labels)

    loss_of = torch.compile(forward) if options.variant == "compiled" else forward

    def step(rows: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=options.variant != "cuda_graph")
        loss_of(data.images[rows], data.labels[rows]).backward()
        optimiser.step()

    if options.variant == "cuda_graph":
        step = _graphed(step, data.rows().clone())

    def train(steps: int) -> None:
        for _ in range(steps):
            step(data.rows())
        if device.type == "cuda":
            torch.cuda.synchronize()

    return train


def _graphed(step: Any, rows: torch.Tensor) -> Any:
    """The whole step as one CUDA graph, which is launched at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(rows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(rows)

    def replay(new: torch.Tensor) -> None:
        rows.copy_(new)
        graph.replay()

    return replay


def stacked(options: argparse.Namespace, device: torch.device) -> Any:
    """All configurations at once with torch.func; without running statistics, which it does not allow."""
    models = [
        network(options.width, options.channels, running_statistics=False).to(device) for _ in range(options.configs)
    ]
    params, buffers = torch.func.stack_module_state(models)
    frozen = {name: p for name, p in params.items() if not p.requires_grad}
    params = {name: p.detach() for name, p in params.items() if p.requires_grad}
    data, base = Data(options, device), models[0]
    rates = torch.logspace(-3, -1, options.configs, device=device)

    def loss_of(params: Any, frozen: Any, buffers: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            return F.cross_entropy(torch.func.functional_call(base, (params, frozen, buffers), (images,)), labels)

    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(0, 0, 0, None, None))

    def train(steps: int) -> None:
        nonlocal params
        for _ in range(steps):
            rows = data.rows()
            grads = gradients(params, frozen, buffers, data.images[rows], data.labels[rows])
            params = {n: p - rates.view(-1, *[1] * (p.ndim - 1)) * (grads[n] + 1e-3 * p) for n, p in params.items()}
        if device.type == "cuda":
            torch.cuda.synchronize()

    return train


def main() -> None:
    """Serve steps of PyTorch training."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("size", 8), ("channels", 1), ("width", 4), ("configs", 1), ("batch", 128), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variant", choices=VARIANTS, default="eager")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "float32"
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    train = (stacked if options.variant == "stacked" else one_by_one)(options, device)
    train(3)
    serve(train, start_up_s=round(time.perf_counter() - started, 2))


if __name__ == "__main__":
    main()
