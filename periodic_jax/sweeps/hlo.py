"""Reads the text of a program that XLA has optimised: its computations, their instructions, shapes and loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ITEMSIZES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"\s*([\w\-]+)(?=\()")


class Shape(NamedTuple):
    """An array; a tuple of arrays is a tuple of these."""

    dtype: str
    dims: tuple[int, ...]
    is_in_vmem: bool = False  # on TPU: in the memory beside the cores, which is not counted as traffic

    @property
    def size(self) -> int:
        """Number of elements."""
        product = 1
        for dim in self.dims:
            product *= dim
        return product

    @property
    def nbytes(self) -> int:
        """Bytes without padding, wherever it is; 0 of what is no array of numbers."""
        return self.size * ITEMSIZES.get(self.dtype, 0)

    @property
    def traffic(self) -> int:
        """Bytes that reading or writing all of it moves."""
        return 0 if self.is_in_vmem else self.nbytes


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result, nested tuples flattened
    operands: tuple[str, ...]
    arguments: str  # what stands between the parentheses
    attributes: str  # and after them
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None

    @property
    def called(self) -> str | None:
        """The computation that a fusion, a call or an asynchronous start stands for."""
        return self.attribute(r"(?:calls|to_apply)=%?([\w.\-]+)")

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = self.attribute(r"branch_computations=\{([^}]*)\}")
        if listed is None:
            return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", listed)

    @property
    def op_name(self) -> str:
        """Where it is from, such as ``jit(chunk)/while/body/jvp(ConvNet)/conv0/mul``."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def kind(self) -> str:
        """The opcode, or the target of a custom call."""
        return self.attribute(r'custom_call_target="([^"]+)"') or self.opcode


Computation = dict[str, Instruction]  # in the order of execution


@dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name.
        entry: the one that is executed.
    """

    computations: dict[str, Computation]
    entry: str

    def root(self, computation: str) -> Instruction:
        """The result of a computation."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a ``while`` runs, or None where that depends on data.

        XLA writes it down for GPUs. For TPUs it is the constant with which the condition compares.
        """
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = loop.attribute(r"condition=%?([\w.\-]+)")
        constants = [
            int(i.arguments)
            for i in self._within(condition or "")
            if i.opcode == "constant" and i.arguments.isdigit() and i.shapes[0].dtype == "s32"
        ]
        return max(constants, default=None)

    def _within(self, computation: str) -> Iterator[Instruction]:
        for instruction in self.computations.get(computation, {}).values():
            yield instruction
            if instruction.called:
                yield from self._within(instruction.called)


def parse(text: str) -> Module:
    r"""The program that a text holds, as ``compiled.as_text()`` gives it.

    Args:
        text: of one HLO module.

    Example:
        >>> module = parse("ENTRY %main (x: f32[2,3]) -> f32[2,3] {\n  ROOT %y = f32[2,3]{1,0} negate(%x)\n}")
        >>> module.root("main").opcode, module.root("main").shapes[0].nbytes
        ('negate', 24)
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return Module(computations, entry)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, nested tuples flattened.

    Example:
        >>> shapes_of("(f32[2]{0}, (bf16[4,1]{1,0:T(8,128)S(1)}, s32[]))")[1]
        Shape(dtype='bf16', dims=(4, 1), is_in_vmem=True)
    """
    return tuple(
        Shape(dtype, tuple(map(int, filter(None, dims.split(",")))), "S(1)" in layout)
        for dtype, dims, layout in SHAPE.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    start = START.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    # A type begins with a parenthesis if it is a tuple, and has no spaces if it is not.
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode = OPCODE.match(rest, end)
    if end < 0 or not opcode:
        return None
    tail = rest[opcode.end() :]
    close = _closing(tail)
    arguments = tail[1 : close - 1]
    return Instruction(
        start.group(2), opcode.group(1), shapes_of(rest[:end]), tuple(NAME.findall(arguments)), arguments,
        tail[close:], bool(start.group(1)),
    )  # fmt: skip


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the one with which a text begins."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match.group() == "(" else -1
        if not depth:
            return match.end()
    return len(text)
