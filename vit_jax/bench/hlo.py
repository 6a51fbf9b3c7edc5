"""A compiled TPU program from its text: estimated cycles of each instruction, by part.

libtpu's compiler writes "estimated_cycles" at every top-level instruction, except Pallas kernels
("tpu_custom_call"). Stack frames in the text give the function of this package that an instruction
comes from, in the backward pass as in the forward one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vit_jax.bench import collectives

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
KERNEL = 'custom_call_target="tpu_custom_call"'
OP_NAME, FRAME = re.compile(r'op_name="(.*?)"'), re.compile(r"stack_frame_id=(\d+)")
CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
LAYOUTS = re.compile(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}")

#: Parts of a step, in the order of the table.
PARTS = (
    "attention", "mlp", "projections", "norms", "bias_gradients", "copies", "optimizer", "input",
    "head", "other",
)  # fmt: skip

#: Operations that move values without computing; a program of only these is a copy.
MOVES = {
    "bitcast", "concatenate", "copy", "dynamic-slice", "dynamic-update-slice", "pad", "reshape",
    "reverse", "slice", "transpose",
}  # fmt: skip
BESIDE = {"broadcast", "constant", "convert", "get-tuple-element", "iota", "parameter", "tuple"}

#: (part, functions of this package): an instruction belongs to the innermost function listed.
FUNCTIONS = (
    ("norms", r"(LayerNorm|GroupNorm)\.__call__"),
    ("mlp", r"MLP\.__call__"),
    ("attention", r"SelfAttention\.__call__"),
    ("input", r"(PatchEmbedding|PositionEmbedding\w*|HybridStem)\.__call__"),
    ("input", r"VisionTransformer\.(patches|embed)|normalise|mixup|cutmix"),
    ("head", r"VisionTransformer\.classify|batch_loss"),
    ("optimizer", r"train_step"),
)
#: Functions that call the parts of the model, and are ignored.
AROUND = r"gradients|VisionTransformer\.(__call__|encode)"


class Instruction(NamedTuple):
    """A top-level instruction.

    result: the text of its type. cycles: estimated, per execution; None for a kernel. times:
    executions per run. moves: it only copies. read: bytes of its operands. frames: the functions it
    comes from, innermost first.
    """

    name: str
    result: str
    cycles: int | None
    times: int
    moves: bool
    read: int
    op_name: str
    frames: tuple[str, ...]
    operands: str = ""  # text of their types, of kernels

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + sum(collectives.array_bytes(self.result))

    @property
    def signature(self) -> tuple[str, ...]:
        """Types of operands and results, without layouts: "bf16[8,197,192]"."""
        arrays = collectives.ARRAY.findall(f"{self.operands} {self.result}")
        return tuple(f"{dtype}[{dims}]" for dtype, dims in arrays)


def read(hlo: str) -> list[Instruction]:
    """The instructions of a compiled module that have an estimate, and its Pallas kernels.

    Raises:
      ValueError: one is inside a loop of unknown trip count.
    """
    computations = collectives.split_computations(hlo)
    turns = collectives.executions(computations)
    fused = set(re.findall(r" fusion\(.*?\bcalls=%?([\w.\-]+)", hlo))
    frames = stack_frames(hlo)
    found = []
    for computation, lines in computations.items():
        if computation in fused or not turns[computation]:
            continue
        sizes: dict[str, int] = {}
        for line in lines:
            match = INSTRUCTION.match(line)
            if not match:
                continue
            name, result, opcode, arguments = match.groups()
            sizes[name] = sum(collectives.array_bytes(result))
            cycles, kernel = CYCLES.search(line), KERNEL in line
            if not cycles and not kernel:
                continue
            if math.isnan(turns[computation]):
                raise ValueError(f"{name} is in a loop of unknown length.")
            source, frame = OP_NAME.search(line), FRAME.search(line)
            called, layouts = CALLS.search(line), LAYOUTS.search(line)
            does = opcodes(computations, called[1]) if opcode == "fusion" and called else {opcode}
            operands = layouts[1] if layouts else ""
            found.append(
                Instruction(
                    name=name,
                    result=result,
                    cycles=None if kernel else int(cycles[1]),  # type: ignore[index]
                    times=int(turns[computation]),
                    moves=only_moves(does),
                    read=sum(collectives.array_bytes(operands))
                    or sum(sizes.get(one, 0) for one in re.findall(r"%([\w.\-]+)", arguments)),
                    op_name=source[1] if source else "",
                    frames=frames.get(int(frame[1]), ()) if frame else (),
                    operands=operands,
                )
            )
    return found


def opcodes(computations: dict[str, list[str]], name: str) -> set[str]:
    """The instructions of a fused computation, nested fusions included."""
    found: set[str] = set()
    for line in computations.get(name, []):
        match = INSTRUCTION.match(line)
        called = CALLS.search(line)
        if match and match[3] == "fusion" and called:
            found |= opcodes(computations, called[1])
        elif match:
            found.add(match[3])
    return found


def only_moves(operations: set[str]) -> bool:
    """Whether these only move values. A concatenation is a maximum of arrays padded with -inf."""
    beside = BESIDE | ({"maximum"} if "pad" in operations else set())
    return bool(operations & (MOVES - {"bitcast"})) and operations <= MOVES | beside


def stack_frames(hlo: str) -> dict[int, tuple[str, ...]]:
    """The functions of every stack frame by its number, innermost first, with their classes.

    "make_train_step.<locals>.train_step" is "train_step".
    """
    tables = {
        name: dict(re.findall(r"^(\d+) (.*)$", body, re.MULTILINE))
        for name, body in re.findall(r"^(F\w+|StackFrames)\n((?:\d+ .*\n)*)", hlo, re.MULTILINE)
    }
    functions = {
        number: text.strip('"').rpartition("<locals>.")[2]
        for number, text in tables.get("FunctionNames", {}).items()
    }
    places = {
        number: functions.get(re.search(r"function_name_id=(\d+)", text)[1], "")  # type: ignore[index]
        for number, text in tables.get("FileLocations", {}).items()
    }
    found: dict[int, tuple[str, ...]] = {}
    for number, text in tables.get("StackFrames", {}).items():
        place, above = (
            re.search(rf"{key}=(\d+)", text)[1]  # type: ignore[index]
            for key in ("file_location_id", "parent_frame_id")
        )
        # Parents come first, with indices one too high; the outermost frame is its own parent.
        found[int(number)] = (places.get(place, ""), *found.get(int(above) - 1, ()))
    return found


def part_of(one: Instruction) -> str:
    """The part of an instruction: one of PARTS."""
    part, inside = "other", one.frames
    for number, function in enumerate(one.frames):
        if re.fullmatch(AROUND, function):
            break
        named = [name for name, pattern in FUNCTIONS if re.fullmatch(pattern, function)]
        if named:
            part, inside = named[0], one.frames[:number]
            break
    if one.cycles is None:
        return part if part != "other" else "attention"
    if one.moves:
        return "copies"
    if part in ("mlp", "attention", "input", "head") and is_bias_gradient(one):
        return "bias_gradients"
    return "projections" if part == "attention" and "Dense.__call__" in inside else part


def is_bias_gradient(one: Instruction) -> bool:
    """Only a sum over all tokens: it writes far less than it reads."""
    written = sum(collectives.array_bytes(one.result))
    is_dense = {"Dense.__call__", "PatchEmbedding.__call__"} & set(one.frames)
    is_sum = "transpose(" in one.op_name and one.op_name.endswith("/reduce_sum")
    return bool(is_dense) and is_sum and 8 * written < one.read


def parts(
    instructions: Iterable[Instruction], kernel_cycles: Callable[[Instruction], int]
) -> dict[str, int]:
    """Cycles of a run by part; `kernel_cycles` gives those of a kernel's execution."""
    found = dict.fromkeys(PARTS, 0)
    for one in instructions:
        cycles = kernel_cycles(one) if one.cycles is None else one.cycles
        found[part_of(one)] += cycles * one.times
    return found
