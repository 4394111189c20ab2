"""Counts what a compiled program does: bytes to and from memory, launches, floating-point operations, estimated cycles.

Every instruction outside a fusion reads its operands from memory and writes its results there, each time that its loop
runs. What XLA has fused moves nothing within. Three rules make that exact: what is read only in slices counts as these
slices; what is updated in place counts as the update; on TPU what lives in the memory beside the cores counts nothing.
On GPU it is an upper bound, since caches serve a part of it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from periodic_jax.sweeps.flops import flops_of
from periodic_jax.sweeps.hlo import Computation, Instruction, Module, Shape, parse

# Neither moves a byte nor is launched: names for parts and the ends of what was started before.
FREE = frozenset([
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "opt-barrier",
    "optimization-barrier", "partition-id", "replica-id", "copy-done", "fusion-done", "slice-done", "async-done",
    "async-update", "AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast",
])  # fmt: skip
SLICES = frozenset(("dynamic-slice", "slice", "gather"))
UNCHANGED = frozenset(("bitcast", "copy", "reshape", "convert", "transpose"))  # of an update in place, within a fusion
OTHER = "update and records"


@dataclass(frozen=True)
class Cost:
    """What is executed.

    Attributes:
        bytes: read from memory and written there.
        launches: of kernels; on TPU instructions.
        flops: floating-point operations of products and convolutions, two for each multiplication.
        cycles: that XLA estimates, on TPU.
    """

    bytes: float = 0
    launches: float = 0
    flops: float = 0
    cycles: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self._numbers(), other._numbers(), strict=True)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * number for number in self._numbers()))

    def _numbers(self) -> tuple[float, ...]:
        return self.bytes, self.launches, self.flops, self.cycles


Costs = dict[str, Cost]  # by layer


class ChunkCost(NamedTuple):
    """What a chunk of steps does."""

    step: Costs  # one step of all configurations, by layer
    outside: Cost  # once in a chunk: initial copies, permutations of the data

    @property
    def total(self) -> Cost:
        """Of one step."""
        return sum(self.step.values(), Cost())


def chunk_cost(text: str, layers: Iterable[str] = (), measured_every: int = 1) -> ChunkCost:
    """Count the compiled program of a chunk of steps.

    The loop over the steps has a bound that only the run knows. It is the loop of that kind which computes most.

    Args:
        text: of the program.
        layers: names of layers, as they stand in the names of operations; see `layer_of`.
        measured_every: steps between those in which a conditional takes its dearer branch.

    Returns:
        The cost of one step, and what is outside of the loop. A program without such a loop is one step.
    """
    module, known = parse(text), tuple(layers)
    counter = _Counter(module, lambda op_name: layer_of(op_name, known), measured_every)
    # Permutations are in such a loop too.
    loops = [i for i in counter.executed(module.entry) if i.opcode == "while" and module.trip_count(i) is None]
    bodies = {loop.name: counter.cost(_body(loop)) for loop in loops}
    if not bodies:
        return ChunkCost(counter.cost(module.entry), Cost())

    def work(name: str) -> tuple[float, float]:
        total = sum(bodies[name].values(), Cost())
        return total.flops, total.bytes

    training = max(bodies, key=work)
    outside = counter.cost(module.entry, without=training)
    return ChunkCost(bodies[training], sum(outside.values(), Cost()))


def layer_of(op_name: str, layers: Iterable[str] = ()) -> str:
    """The layer that an operation belongs to.

    Args:
        op_name: as XLA's metadata has it: scopes, with the outermost first.
        layers: names of the network's layers.

    Example:
        >>> layer_of("jit(chunk)/while/body/vmap(transpose(jvp(ConvNet)))/conv1/mul", ("conv1", "head"))
        'conv1'
        >>> layer_of("jit(chunk)/while/body/input_pipeline/div"), layer_of("jit(chunk)/while/body/jit(_where)/select_n")
        ('input pipeline', 'update and records')
    """
    scopes = re.split(r"[/;]", op_name)
    for scope in scopes:
        if scope in layers:
            return scope
    if any("input_pipeline" in scope or scope.endswith(".prepare") for scope in scopes):
        return "input pipeline"
    if any("jvp(" in scope for scope in scopes):
        return "loss and rest of the network"
    return OTHER


class _Counter:
    """Costs of computations, by layer."""

    def __init__(self, module: Module, layer: Callable[[str], str], measured_every: int) -> None:
        self._module, self._layer, self._every = module, layer, measured_every

    def executed(self, computation: str) -> list[Instruction]:
        """The instructions of a computation and of those that it calls, but not of its loops and conditionals."""
        found = []
        for instruction in self._module.computations[computation].values():
            found.append(instruction)
            if instruction.opcode == "call" and instruction.called:
                found += self.executed(instruction.called)
        return found

    def cost(self, computation: str, without: str = "") -> Costs:
        """The cost of a computation.

        Args:
            computation: its name.
            without: a loop that is left out.
        """
        total: Costs = defaultdict(Cost)
        instructions = self._module.computations[computation]
        for instruction in instructions.values():
            for layer, cost in self._of(instruction, instructions, without).items():
                total[layer] += cost
        return dict(total)

    def _of(self, instruction: Instruction, computation: Computation, without: str) -> Costs:
        if instruction.kind in FREE or instruction.opcode in FREE or instruction.name == without:
            return {}
        if instruction.opcode == "while":
            return _times(self.cost(_body(instruction)), self._module.trip_count(instruction) or 1)
        if instruction.opcode == "call" and instruction.called:
            return self.cost(instruction.called, without)
        if instruction.opcode == "conditional":
            return self._of_branches(instruction)
        cost = Cost(
            bytes=self._bytes(instruction, computation),
            launches=1,
            flops=flops_of(instruction, computation, self._module),
            cycles=float(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0),
        )
        return {self._layer(_named(instruction, computation)): cost}

    def _of_branches(self, conditional: Instruction) -> Costs:
        """The dearest branch in one of ``measured_every`` steps, and the cheapest one in the others."""
        branches = sorted(map(self.cost, conditional.branches), key=lambda costs: sum(costs.values(), Cost()).bytes)
        total: Costs = defaultdict(Cost)
        for costs, share in ((branches[-1], 1 / self._every), (branches[0], 1 - 1 / self._every)):
            for layer, cost in costs.items():
                total[layer] += cost * share
        return total

    def _bytes(self, instruction: Instruction, computation: Computation) -> int:
        operands = [computation[name].shapes for name in instruction.operands if name in computation]
        inputs, results = [s for shapes in operands for s in shapes], instruction.shapes
        opcode, called = instruction.opcode, instruction.called
        if opcode in ("fusion", "fusion-start", "async-start") and called in self._module.computations:
            return self._bytes_of_fusion(called, [shapes[0] if shapes else None for shapes in operands])
        if opcode == "copy-start":  # (destination, source, context)
            return results[0].traffic + results[1].traffic
        if opcode == "slice-start":  # (operands, result, context): as much is read as is written
            moved = results[-2].nbytes
            return sum(moved for shape in (results[0], results[-2]) if not shape.is_in_vmem)
        if opcode in SLICES:
            moved = sum(shape.nbytes for shape in results)
            indices = sum(shape.traffic for shape in inputs[1:])
            return sum(moved for shape in (inputs[0], *results[:1]) if not shape.is_in_vmem) + indices
        if opcode == "dynamic-update-slice":
            return inputs[1].traffic + (0 if results[0].is_in_vmem else inputs[1].nbytes)
        if instruction.kind.startswith(("__cudnn$", "__cublas$")):
            results = tuple(shape for shape in results if shape.dtype != "u8")  # without the scratch memory
        return sum(shape.traffic for shape in (*inputs, *results))

    def _bytes_of_fusion(self, called: str, operands: list[Shape | None]) -> int:
        body = self._module.computations[called]
        users: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in body.values():
            for name in instruction.operands:
                users[name].append(instruction)
        root = self._module.root(called)
        roots = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        total = 0
        for result, shape in zip(roots, root.shapes, strict=False):
            source = _source(result, body)
            if source.opcode == "dynamic-update-slice":
                total += 0 if shape.is_in_vmem else body[source.operands[1]].shapes[0].nbytes
            else:
                total += shape.traffic
        parameters = {int(i.arguments): i for i in body.values() if i.opcode == "parameter"}
        for number, shape in enumerate(operands):
            if shape is None or shape.is_in_vmem or number not in parameters:
                continue
            read = _read_in_slices(parameters[number].name, body, users)
            total += shape.nbytes if read is None else min(read, shape.nbytes)
        return total


def _body(loop: Instruction) -> str:
    return loop.attribute(r"body=%?([\w.\-]+)") or ""


def _named(instruction: Instruction, computation: Computation, depth: int = 3) -> str:
    """Where an instruction is from; a copy that XLA put in without a name is from where its result goes."""
    if instruction.op_name or not depth:
        return instruction.op_name
    users = (other for other in computation.values() if instruction.name in other.operands)
    return next(filter(None, (_named(user, computation, depth - 1) for user in users)), "")


def _times(costs: Mapping[str, Cost], factor: float) -> Costs:
    return {layer: cost * factor for layer, cost in costs.items()}


def _source(instruction: Instruction, body: Computation) -> Instruction:
    """What a result is, but for its arrangement and type."""
    while instruction.opcode in UNCHANGED and instruction.operands:
        instruction = body[instruction.operands[0]]
    return instruction


def _read_in_slices(name: str, body: Computation, users: Mapping[str, list[Instruction]]) -> int | None:
    """Bytes of the slices of an operand that a fusion reads, or None where it reads all."""
    total = 0
    for user in users[name]:
        is_first = user.operands[0] == name
        if user.opcode in SLICES and is_first:
            total += user.shapes[0].nbytes
        elif user.opcode == "dynamic-update-slice" and is_first:
            continue  # updated in place
        elif user.opcode in ("bitcast", "copy"):
            if (read := _read_in_slices(user.name, body, users)) is None:
                return None
            total += read
        else:
            return None
    return total
