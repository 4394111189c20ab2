"""Counts the floating-point operations of matrix products and convolutions, from their shapes.

Two for each multiplication of two numbers that exist: those with zeros of the padding, or with the holes of a stride
backwards, count nothing. A kernel with blocks of zeros counts with them.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

from periodic_jax.sweeps.hlo import Computation, Instruction, Module, Shape


class Window(NamedTuple):
    """Along one dimension of a convolution: output ``o`` sees input ``o stride - low + k dilation`` for each ``k``."""

    size: int = 1
    stride: int = 1
    low: int = 0  # padding before the first input
    holes: int = 1  # distance of inputs: 2 with a zero between any two
    dilation: int = 1

    def products(self, inputs: int, outputs: int) -> int:
        """Pairs of an output and a place of the window that meet an input.

        Example:
            >>> Window(size=3, low=1).products(32, 32)  # 3 for each output, but 2 at both ends
            94
        """
        return _products(self, inputs, outputs)


@functools.cache
def _products(window: Window, inputs: int, outputs: int) -> int:
    places = np.arange(outputs)[:, None] * window.stride - window.low + np.arange(window.size) * window.dilation
    return int(((places >= 0) & (places % window.holes == 0) & (places // window.holes < inputs)).sum())


def flops_of(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Of an instruction, with all that is fused into it.

    Args:
        instruction: of any kind; 0 for one that is no product.
        computation: which it is in.
        module: with the computations that it calls.
    """
    if instruction.called in module.computations:
        body = module.computations[instruction.called]
        return sum(flops_of(inner, body, module) for inner in body.values())
    shapes = [computation[name].shapes[0] for name in instruction.operands if name in computation]
    if len(shapes) < 2:
        return 0
    if instruction.opcode == "convolution":
        return _of_convolution(instruction, shapes[0], shapes[1], instruction.shapes[0])
    if instruction.kind.startswith("__cudnn$conv"):
        return _of_library_convolution(instruction, shapes)
    dims = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.kind.startswith("__cublas$"):
        listed = instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ""
        dims = listed.replace('"', "")
    elif instruction.opcode != "dot":
        return 0
    contracted = math.prod(shapes[0].dims[int(dim)] for dim in filter(None, (dims or "").split(",")))
    return 2 * instruction.shapes[0].size * contracted


def _of_convolution(instruction: Instruction, inputs: Shape, kernel: Shape, outputs: Shape) -> int:
    """Each output sums, over what its window meets, as many products as the kernel has input features.

    The kernel has those of one group only. Layouts of dimensions are written as ``b01f_01io->b01f``.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        return 0
    of_input, of_kernel, of_output = labels.groups()
    total = 2 * kernel.dims[of_kernel.index("i")]
    total *= outputs.dims[of_output.index("b")] * outputs.dims[of_output.index("f")]
    for number, window in enumerate(_windows(instruction)):
        place = str(number)
        total *= window.products(inputs.dims[of_input.index(place)], outputs.dims[of_output.index(place)])
    return total


def _of_library_convolution(instruction: Instruction, operands: list[Shape]) -> int:
    """A call of cuDNN: whatever is asked for, the labels are those of the convolution forward."""
    result = next(shape for shape in instruction.shapes if shape.dtype != "u8")
    first, second = operands[:2]
    if instruction.kind.endswith("BackwardInput"):
        return _of_convolution(instruction, result, second, first)
    if instruction.kind.endswith("BackwardFilter"):
        return _of_convolution(instruction, first, result, second)
    return _of_convolution(instruction, first, second, result)


def _windows(instruction: Instruction) -> list[Window]:
    """What ``window={size=3x3 pad=1_1x1_1 stride=2x2}`` says of each spatial dimension, in their order."""
    text = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in text.split())
    if "size" not in fields:
        return []
    values = {name: fields[name].split("x") for name in fields}
    count = len(values["size"])

    def of(name: str, default: int) -> list[int]:
        return [int(value.split("_")[0]) for value in values.get(name, [str(default)] * count)]

    columns = of("size", 1), of("stride", 1), of("pad", 0), of("lhs_dilate", 1), of("rhs_dilate", 1)
    return [Window(*numbers) for numbers in zip(*columns, strict=True)]
