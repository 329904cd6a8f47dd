"""EventGPT's `.npy`: a *pickled* dict of arrays x, y (u2), p (u1), t (us), read without unpickling.

A pickle is a program: whoever writes it chooses which functions run. So nothing here is run. The few opcodes that
numpy's own files consist of are interpreted as data (stdlib `pickletools` only splits the bytes into opcodes); the
four numpy names they may mention stand for records of ours, and an array is made from its raw bytes with a dtype
from a fixed list. Anything else (another name, opcode, dtype, an array of objects inside) refuses the file.
"""

import io
import os
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.data.events import EventError, Events, sized

# 1 s of DSEC is at most 26 M events of 13 bytes: 0.34 GB.
MAX_BYTES = 1 << 30
# EventGPT's files take 150 opcodes; the bound keeps a hostile file from building deep or endless structures.
_MAX_OPCODES = 10_000
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f4", "f8", "b1"}
_HEADER = re.compile(rb"\{'descr': '\|?O', 'fortran_order': (True|False), 'shape': \(\),? *,? *\}\s*")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = {(module, name) for module in _MULTIARRAY for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Refused(ValueError):
    """The pickle holds something that an event file does not."""


@dataclass(frozen=True)
class _Name:
    """A numpy name as it stands in the file; never looked up."""

    name: str


@dataclass(eq=False)
class _Dtype:
    """What `numpy.dtype(code, False, True)` and its state said."""

    code: str
    order: str = "|"

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 8 and state[1] in ("<", ">", "|", "=")):
            raise _Refused("a dtype with a foreign state")
        if any(part is not None for part in state[2:5]):
            raise _Refused("a dtype with fields or sub-arrays")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if self.code not in _NUMBERS:
            raise _Refused(f"an array of dtype {self.code[:20]!r}; only integers, floats and bool are read")
        # Bytes other than 0 and 1 make no valid bool: as u1 they are seen, and the range check refuses them.
        return np.dtype("u1" if self.code == "b1" else self.order.replace("|", "=") + self.code)


@dataclass(eq=False)
class _Array:
    """An array between `_reconstruct` and its state; `value` is an ndarray, or the list inside an object array."""

    value: np.ndarray | list[Any] | None = None

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype)):
            raise _Refused("an array with a foreign state")
        _, shape, dtype, _, data = state
        if dtype.code in ("O", "O8") and shape == () and isinstance(data, list) and len(data) == 1:
            self.value = data
            return
        if not isinstance(data, bytes):
            raise _Refused(f"an array of dtype {dtype.code[:20]!r} that is not raw bytes")
        kind = dtype.numpy()
        # Event columns are 1-d, so Fortran order says nothing.
        if not (isinstance(shape, tuple) and len(shape) == 1 and type(shape[0]) is int):
            raise _Refused("an array that is not 1-d")
        if shape[0] * kind.itemsize != len(data):
            raise _Refused(f"an array of {shape[0]:.3g} values of {kind} over {len(data)} bytes")
        self.value = np.frombuffer(data, kind)


@dataclass
class _Machine:
    """The stack, marks and memo of the pickle language, for the opcodes that plain data and numpy arrays need."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self, count: int) -> list[Any]:
        low = len(self.stack) - count
        if low < (self.marks[-1] if self.marks else 0):
            raise _Refused("a pickle that takes more than it put")
        taken = self.stack[low:]
        del self.stack[low:]
        return taken

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("a pickle without its mark")
        low = self.marks.pop()
        taken = self.stack[low:]
        del self.stack[low:]
        return taken

    def top(self, *kinds: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            raise _Refused("a pickle that changes what is neither list, dict nor array")
        return self.stack[-1]

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"pickle opcode {opcode}")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


def _named(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _Refused("a name that is not text")
    if (module, name) not in _NAMES:
        raise _Refused(f"the name {module[:60]!a}, {name[:60]!a}")
    return _Name(name)


def _called(function: Any, arguments: Any) -> Any:
    """What the file asks numpy to make, as a record; the arguments only describe."""
    match function, arguments:
        case _Name("_reconstruct"), (_Name("ndarray"), (0,), bytes()):
            return _Array()
        case _Name("dtype"), (str() as code, bool(), bool()):
            return _Dtype(code)
        case _Name("scalar"), (_Dtype() as dtype, bytes() as data) if len(data) == dtype.numpy().itemsize:
            return np.frombuffer(data, dtype.numpy())[0].item()
    raise _Refused("a call that numpy's arrays do not need")


def _reduce(machine: _Machine, _: Any) -> None:
    function, arguments = machine.pop(2)
    machine.stack.append(_called(function, arguments))


def _build(machine: _Machine, _: Any) -> None:
    (state,) = machine.pop(1)
    machine.top(_Array, _Dtype).build(state)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    # Only text keys: hashing a tuple nested a hundred deep would take for ever.
    if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
        raise _Refused("a dict whose keys are not text")
    machine.top(dict).update(zip(keys, values, strict=True))


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise _Refused("a pickle that reads what it did not store")
    machine.stack.append(machine.memo[index])


def _put(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.top(object)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: _append(machine, machine.pop(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.pop(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
    "GLOBAL": lambda machine, text: machine.stack.append(_named(*text.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(_named(*machine.pop(2))),
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINGET": _get, "LONG_BINGET": _get,
    "BINPUT": _put, "LONG_BINPUT": _put, "MEMOIZE": _put,
}  # fmt: skip


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _interpret(pickled: bytes) -> Any:
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(pickled))):
        if count >= _MAX_OPCODES:
            raise _Refused(f"more than {_MAX_OPCODES} pickle opcodes")
        machine.step(opcode.name, argument)
    (value,) = machine.pop(1)
    return value


def _columns(value: Any) -> dict[str, np.ndarray]:
    """The four arrays of `array(dict, dtype=object)`, or of a bare dict."""
    inside = value.value if isinstance(value, _Array) else value
    record = inside[0] if isinstance(inside, list) and inside else inside
    if not isinstance(record, dict):
        raise _Refused("no dict of x, y, p, t")
    arrays = {key: record[key].value for key in "xypt" if isinstance(record.get(key), _Array)}
    missing = [key for key in "xypt" if not isinstance(arrays.get(key), np.ndarray)]
    if missing:
        raise _Refused(f"no array {', '.join(missing)} (keys: {', '.join(map(ascii, record))[:80] or 'none'})")
    return {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}


def _pickled(path: Path, max_bytes: int) -> bytes:
    """Return the bytes behind a .npy header that announces one pickled object."""
    size = path.stat().st_size
    if size > max_bytes:
        raise _Refused(f"{size} bytes, the limit is {max_bytes}")
    with path.open("rb") as file:
        start = file.read(10)
        # Format 1.0, what np.save writes for a header this short; numpy's own header reader evaluates it as Python.
        if start[:8] != b"\x93NUMPY\x01\x00" or len(start) < 10:
            raise _Refused("no .npy file of format 1.0")
        header = file.read(int.from_bytes(start[8:], "little"))
        if not _HEADER.fullmatch(header):
            raise _Refused(f"header {header[:80]!a} instead of one pickled object")
        return file.read()


def read_event_npy(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, max_bytes: int = MAX_BYTES
) -> Events:
    """Read EventGPT's `.npy` of events; nothing in the file is ever executed.

    size: (height, width) of the sensor; when None, (max y + 1, max x + 1) as in the study.
    Raises EventError, with the path, for a missing, truncated, foreign, hostile or too large file and for bad events.
    """
    path = Path(path)
    try:
        columns = _columns(_interpret(_pickled(path, max_bytes)))
    except FileNotFoundError as error:
        raise EventError(f"{path}: no such file; check the path") from error
    # _Refused, and pickletools on truncated bytes; on foreign ones it may warn (an error where warnings are).
    except (OSError, ValueError, Warning) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EventError(
            f"{path}: refused, it is not EventGPT's .npy (a pickled dict of number arrays x, y, p, t) or is damaged:"
            f" {reason}"
        ) from error
    return sized(columns, size, where=str(path))
