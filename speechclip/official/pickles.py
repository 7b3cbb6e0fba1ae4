"""A pickle read as data: its opcodes are walked by a machine of our own, which looks no name up and calls nothing.

A name in the file stays a `Name`, an object of any class becomes an `Inert` record. Where the file calls a name, the
reader's own function for it is called, or a record made if it is `HARMLESS`; any other call is refused.
"""

import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from speechclip.errors import InvalidInput

Build = Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Name:
    """A class or function that the file mentions."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


@dataclass(eq=False)
class Inert:
    """What the file says of an object: its class, the arguments of its making, its state, and what was put into it."""

    kind: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


# Calls by which ordinary values are pickled: paths, NumPy's numbers, sets. They become records.
HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
        "datetime": ("datetime", "timedelta"),
        "collections": ("defaultdict", "deque"),
        "argparse": ("Namespace",),
        "torch": ("device", "Size"),
        "numpy": ("dtype", "ndarray"),
        "numpy.core.multiarray": ("scalar", "_reconstruct"),
        "numpy._core.multiarray": ("scalar", "_reconstruct"),
        "_codecs": ("encode",),
        "copy_reg": ("_reconstructor",),
        "copyreg": ("_reconstructor",),
        "__builtin__": ("set", "frozenset", "complex", "bytearray", "slice"),
        "builtins": ("set", "frozenset", "complex", "bytearray", "slice"),
    }.items()
    for name in names
)
_SCALARS = (str, bytes, int, float, bool, type(None), Name)
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MEMORISE = {"PUT", "BINPUT", "LONG_BINPUT"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}


def read_pickle(
    data: bytes, source: str, *, build: Mapping[str, Build], persistent: Callable[[object], object]
) -> object:
    """The value in a pickle, dicts, lists, tuples and scalars as they are; sets are lists.

    `build` are functions of ours by the dotted name that the file calls; `persistent` gives what a persistent id stands
    for. `InvalidInput` where the file would call or make anything else, or is no whole pickle.
    """
    machine = _Machine(source, build, persistent)
    try:
        with warnings.catch_warnings():
            # Of odd escapes in a text, which are no affair of whoever reads the file.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{source}: its pickle is damaged ({_first_line(error)}); fetch the file again") from None
    raise AssertionError("genops ends with STOP or an error")


class _Machine:
    """The stack, the marks in it and the memo of a pickle that is being read."""

    def __init__(self, source: str, build: Mapping[str, Build], persistent: Callable[[object], object]) -> None:
        self.source, self.build, self.persistent = source, build, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Do one opcode."""
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _MEMORISE:
            self.memo[int(argument)] = self.stack[-1]
        elif opcode in _RECALL:
            self.stack.append(self.memo[int(argument)])
        elif not self._collect(opcode):
            self._make(opcode, argument)

    def _collect(self, opcode: str) -> bool:
        """Lists, tuples, dicts and what is put into them; False for another opcode."""
        match opcode:
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._take(int(opcode[-1]))))
            case "TUPLE":
                self.stack.append(tuple(self._marked()))
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "LIST" | "FROZENSET":
                self.stack.append(self._marked())
            case "EMPTY_DICT":
                self.stack.append({})
            case "DICT":
                self.stack.append(dict(self._pairs(self._marked())))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = self._take(1) if opcode == "APPEND" else self._marked()
                self._list_at_top().extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._take(2) if opcode == "SETITEM" else self._marked()
                self._dict_at_top().update(self._pairs(values))
            case _:
                return False
        return True

    def _make(self, opcode: str, argument: Any) -> None:
        """Names, objects and the stack's own business."""
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GLOBAL":
                self.stack.append(self._name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(self._name(*self._take(2)))
            case "PERSID":
                self.stack.append(self.persistent(argument))
            case "BINPERSID":
                self.stack.append(self.persistent(self.stack.pop()))
            case "REDUCE":
                self.stack.append(self._call(*self._take(2)))
            case "NEWOBJ":
                self.stack.append(self._new(*self._take(2)))
            case "NEWOBJ_EX":
                kind, arguments, keywords = self._take(3)
                self.stack.append(self._new(kind, (*arguments, keywords)))
            case "BUILD":
                self._set_state()
            case _:
                raise self._refusal(f"uses the opcode {opcode}")

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        place = self.marks.pop()
        taken = self.stack[place:]
        del self.stack[place:]
        return taken

    def _pairs(self, values: list[Any]) -> Iterator[tuple[Any, Any]]:
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Deeply shared tuples take for ever to hash.
            if not isinstance(key, _SCALARS):
                raise self._refusal(f"has a key of the kind {type(key).__name__}")
            yield key, value

    def _list_at_top(self) -> list[Any]:
        top = self.stack[-1]
        found = top.entries if isinstance(top, Inert) else top
        if not isinstance(found, list):
            raise self._refusal(f"appends to {type(top).__name__}")
        return found

    def _dict_at_top(self) -> dict[Any, Any]:
        top = self.stack[-1]
        found = top.items if isinstance(top, Inert) else top
        if not isinstance(found, dict):
            raise self._refusal(f"sets items of {type(top).__name__}")
        return found

    def _name(self, module: object, qualname: object = None) -> Name:
        if not isinstance(module, str) or not isinstance(qualname, str):
            raise self._refusal("names a thing by something else than words")
        return Name(module, qualname)

    def _call(self, name: object, arguments: object) -> Any:
        if not isinstance(arguments, tuple):
            raise self._refusal("makes a call without arguments")
        if isinstance(name, Name) and str(name) in self.build:
            return self.build[str(name)](arguments)
        if isinstance(name, Name) and str(name) in HARMLESS:
            return Inert(name, arguments)
        raise self._refusal(f"would call {name if isinstance(name, Name) else type(name).__name__}")

    def _new(self, kind: object, arguments: object) -> Inert:
        if not isinstance(kind, Name) or not isinstance(arguments, tuple):
            raise self._refusal("makes an object of something that is no class")
        return Inert(kind, arguments)

    def _set_state(self) -> None:
        """The state of a record; an OrderedDict's attributes (torch's `_metadata`) are left behind."""
        target, state = self._take(2)
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            raise self._refusal(f"sets the state of {target if isinstance(target, Name) else type(target).__name__}")
        self.stack.append(target)

    def _refusal(self, deed: str) -> InvalidInput:
        return InvalidInput(
            f"{self.source}: its pickle {deed}, which no official checkpoint does; nothing of it was run, "
            "and nothing else should load this file"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:120]
