"""EventGPT's `.npy` written without pickling anything: the few opcodes that `numpy.save` of a dict gives, by hand.

What is written is `numpy.array(dict, dtype=object)` in pickle protocol 3: the columns x, y (u2), p (u1), t (i8), and
plain numbers beside them. numpy (allow_pickle=True) and `xmsd_jax.data.npy` read it.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from xmsd_jax.data.events import Events

Note = int | float | Sequence[int]
_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
# The name that every numpy since 1.0 knows, as do the files of the study.
_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
_EMPTY = b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"  # ndarray, (0,), b"b" -> REDUCE
_ORDERS = {"|u1": b"|", "<u2": b"<", "<i8": b"<"}
_MOST = (1 << 32) - 1


def write_event_npy(path: str | os.PathLike[str], events: Events, notes: Mapping[str, Note] | None = None) -> None:
    """Write events and `notes` (numbers, lists of whole numbers) as EventGPT's dict; the file appears whole or not.

    Raises ValueError for a column of 4 GB or more, which the format has no place for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            padded = _HEADER + b" " * (-(10 + len(_HEADER) + 1) % 64) + b"\n"
            file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded)
            _write_dict(file, events, notes or {})
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write_dict(file: BinaryIO, events: Events, notes: Mapping[str, Note]) -> None:
    file.write(b"\x80\x03" + _RECONSTRUCT + _EMPTY + b"(K\x01)" + _dtype("O8", b"|", (-1, -1, 63)) + b"\x89]}(")
    columns = {"p": (events.p, "|u1"), "t": (events.t, "<i8"), "x": (events.x, "<u2"), "y": (events.y, "<u2")}
    for name, (column, code) in columns.items():
        file.write(_text(name))
        _write_column(file, np.ascontiguousarray(column, np.dtype(code)), code)
    for name, value in notes.items():
        file.write(_text(name) + _number(value))
    file.write(b"uatb.")  # SETITEMS, APPEND to the one-element list, TUPLE, BUILD, STOP


def _write_column(file: BinaryIO, column: np.ndarray, code: str) -> None:
    if column.nbytes > _MOST:
        raise ValueError(f"a column takes at most {_MOST} bytes, got {column.nbytes}; cut shorter clips")
    kind = _dtype(code[1:], _ORDERS[code], (-1, -1, 0))
    file.write(_RECONSTRUCT + _EMPTY + b"(K\x01" + _number(len(column)) + b"\x85" + kind)
    file.write(b"\x89B" + struct.pack("<I", column.nbytes))
    file.write(column.data)
    file.write(b"tb")


def _dtype(code: str, order: bytes, sizes: tuple[int, int, int]) -> bytes:
    """`numpy.dtype(code, False, True)` and its state (3, order, None, None, None, *sizes)."""
    made = b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R"
    return made + b"(K\x03" + _text(order.decode()) + b"NNN" + b"".join(map(_number, sizes)) + b"tb"


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _number(value: Note) -> bytes:
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int):
        whole = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes((len(whole),)) + whole  # LONG1
    return b"](" + b"".join(_number(int(item)) for item in value) + b"e"
