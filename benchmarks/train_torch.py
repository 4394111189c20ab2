"""Worker: trains ConvNetSI in PyTorch as a PyTorch user would, with the data on the device and nothing recorded."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.common import serve

said: dict[str, Any] = {}  # beside the times
VARIANTS = ("eager", "compiled", "cuda_graph", "compiled_graph", "stacked", "fused", "fused_graph")


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
    model: Any = network(options.width, options.channels).to(device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), lr=0.01, weight_decay=1e-3, fused=True
    )
    data = Data(options, device)

    def forward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            return F.cross_entropy(model(images), labels)

    loss_of = torch.compile(forward) if options.variant.startswith("compiled") else forward
    graphed = options.variant.endswith("graph")

    def step(rows: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=not graphed)
        loss_of(data.images[rows], data.labels[rows]).backward()
        optimiser.step()

    return _trainer(_Graphed(step, data.rows(), list(model.parameters())) if graphed else step, data)


def _trainer(step: Any, data: Data) -> Any:
    """As many steps as are asked for, each on the next mini-batch."""
    if isinstance(step, _Graphed):
        said["graph_difference"] = step.difference()

    def train(steps: int) -> None:
        for _ in range(steps):
            step(data.rows())
        if data.images.is_cuda:
            torch.cuda.synchronize()

    return train


class _Graphed:
    """A whole step as one CUDA graph, which is launched at once.

    A graph holds addresses, not tensors. So the step, with its network, gradients and optimiser, and the memory that
    the graph reads indices from must live as long as the graph: freed, their memory would be given to others, and
    overwritten by each replay.
    """

    def __init__(self, step: Any, rows: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
        self.parameters = parameters
        self.step, self.rows, self.graph = step, rows.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(5):
                step(self.rows)
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=stream):
            step(self.rows)
        torch.cuda.synchronize()

    def __call__(self, rows: torch.Tensor) -> None:
        """One replay, on that mini-batch."""
        self.rows.copy_(rows)
        self.graph.replay()

    @torch.no_grad()
    def difference(self) -> float:
        """By how much a replay moves the weights otherwise than the step itself, relative to the step."""
        before = [p.clone() for p in self.parameters]
        with torch.enable_grad():
            self.step(self.rows)
        expected = [p.clone() for p in self.parameters]
        for p, old in zip(self.parameters, before, strict=True):
            p.copy_(old)
        self(self.rows.clone())
        torch.cuda.synchronize()
        missed = torch.cat([(p - e).flatten() for p, e in zip(self.parameters, expected, strict=True)])
        moved = torch.cat([(e - b).flatten() for e, b in zip(expected, before, strict=True)])
        return float(missed.norm() / moved.norm())


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


class Fused(nn.Module):
    """Many networks as one: their layers side by side as groups of channels, as HFTA does (arXiv 2102.02344).

    Args:
        models: of `network`, equal but for their weights.
    """

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        super().__init__()
        convolutions = [[m for m in model if isinstance(m, nn.Conv2d)] for model in models]
        heads = [m for model in models for m in model if isinstance(m, nn.Linear)]
        self.configs = len(models)
        self.kernels = nn.ParameterList(
            torch.cat([conv.weight.detach() for conv in layer]) for layer in zip(*convolutions, strict=True)
        )
        for i, kernel in enumerate(self.kernels):
            self.register_buffer(f"mean{i}", torch.zeros(len(kernel), dtype=kernel.dtype))
            self.register_buffer(f"var{i}", torch.ones(len(kernel), dtype=kernel.dtype))
        self.register_buffer("head", torch.stack([head.weight.detach().T for head in heads]))
        self.register_buffer("bias", torch.stack([head.bias.detach()[None] for head in heads]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(configurations, batch, classes)`` of images that all configurations see."""
        for i, kernel in enumerate(self.kernels):
            x = F.conv2d(x, kernel, padding=1, groups=self.configs if i else 1)
            mean, var = self.get_buffer(f"mean{i}"), self.get_buffer(f"var{i}")
            x = F.relu(F.batch_norm(x, mean, var, training=True))
            x = F.max_pool2d(x, 2) if i else x
        features = F.adaptive_max_pool2d(x, 1).view(len(x), self.configs, -1).transpose(0, 1)
        return torch.baddbmm(self.get_buffer("bias"), features, self.get_buffer("head"))

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the configurations' losses, so that each has its own gradient."""
        logits = self(images).flatten(0, 1)
        return F.cross_entropy(logits, labels.repeat(self.configs), reduction="sum") / len(labels)


class FusedSGD:
    """SGD with a learning rate and a weight decay of each configuration, on all kernels at once.

    Args:
        model: the networks.
        rates, decays: of each configuration.
    """

    def __init__(self, model: Fused, rates: torch.Tensor, decays: torch.Tensor) -> None:
        def spread(values: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            rows = values.to(kernel).repeat_interleave(len(kernel) // model.configs)
            return torch.zeros_like(kernel) + rows.view(-1, 1, 1, 1)

        self.kernels = list(model.kernels)
        self.rates = [spread(rates, kernel.detach()) for kernel in self.kernels]
        self.decays = [spread(decays, kernel.detach()) for kernel in self.kernels]

    @torch.no_grad()
    def step(self) -> None:
        """One update, which leaves the gradients in pieces."""
        grads = [kernel.grad for kernel in self.kernels]
        torch._foreach_addcmul_(grads, self.kernels, self.decays)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_addcmul_(self.kernels, grads, self.rates, value=-1.0)  # pyright: ignore[reportPrivateImportUsage]


def fused(options: argparse.Namespace, device: torch.device) -> Any:
    """All configurations at once, as one network of grouped convolutions."""
    model: Any = Fused([network(options.width, options.channels) for _ in range(options.configs)]).to(device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    graphed, data = options.variant.endswith("graph"), Data(options, device)
    rates = torch.logspace(-3, -1, options.configs, device=device)
    optimiser = FusedSGD(model, rates, torch.full_like(rates, 1e-3))

    def step(rows: torch.Tensor) -> None:
        model.zero_grad(set_to_none=not graphed)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model.loss(data.images[rows], data.labels[rows])
        loss.backward()
        optimiser.step()

    return _trainer(_Graphed(step, data.rows(), list(model.parameters())) if graphed else step, data)


WAYS = {"stacked": stacked, "fused": fused, "fused_graph": fused}


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
    train = WAYS.get(options.variant, one_by_one)(options, device)
    train(3)
    serve(train, start_up_s=round(time.perf_counter() - started, 2), **said)


if __name__ == "__main__":
    main()
