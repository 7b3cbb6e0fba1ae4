"""Reads a pickle as data. No class or function that the pickle names is imported or called.

A pickle is a small program for a machine with a stack. Python's own `pickle.load` runs it, and the program may call any
function. For example these bytes run a shell command when they are loaded:

    b"cos\\nsystem\\n(S'echo hello'\\ntR."

        c os system      push the function os.system
        ( S'…' t         push a tuple with one text
        R                call the function with the tuple, push the result

The machine here does the same steps with other effects:

    the pickle pushes a class or function       a `Name` is pushed: two texts
    the pickle makes an object of a class       an `Inert` record of the class's name and the object's state is made
    the pickle calls a function in `build`      our function in `build` is called
    the pickle calls a function in `HARMLESS`   an `Inert` record is made
    the pickle calls any other function         the file is refused
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
    """The name of a class or function in the file."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


@dataclass(eq=False)
class Inert:
    """What the file says about an object that was not made.

    `kind` is its class or the function that would make it, called with `arguments`. `state` is what would be given to
    `__setstate__`. `items` and `entries` are what would be put into it as into a dict or a list.
    """

    kind: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


# The calls with which pickles make ordinary values such as paths, NumPy's numbers and sets. They become records.
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
# Opcodes that push their argument.
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
    """The value in the pickle `data`. Sets become lists; objects of classes become `Inert` records.

        >>> read_pickle(pickle.dumps({"step": 5, "seeds": {1}}), "x.ckpt", build={}, persistent=str)
        {'step': 5, 'seeds': [1]}

    `source` is the file's name for messages. `build` has our function for each dotted name that the file may call.
    `persistent` gives the value for a persistent id; torch writes one for each tensor storage.

    Raises `InvalidInput` if the file would call any other function, or if it is no complete pickle.
    """
    machine = _Machine(source, build, persistent)
    try:
        with warnings.catch_warnings():
            # Python warns about odd escapes in a text. The reader of a checkpoint can do nothing about them.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise InvalidInput(
            f"{source}: its pickle is damaged ({_first_line(error)})", "download the file again"
        ) from None
    raise AssertionError("genops ends with STOP or an error")


class _Machine:
    """The state of a pickle that is being read.

    `stack` has the values so far, `marks` the places in it where a tuple, list or dict begins, and `memo` the values
    that the pickle refers to again by a number.
    """

    def __init__(self, source: str, build: Mapping[str, Build], persistent: Callable[[object], object]) -> None:
        self.source, self.build, self.persistent = source, build, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
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
        """Carry out an opcode that makes or fills a tuple, list or dict. Returns False for any other opcode."""
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
        """Carry out an opcode that makes a name, a call or a record, or that only moves values on the stack."""
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
        """Remove the last `count` values from the stack."""
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        """Remove the values after the last mark from the stack."""
        place = self.marks.pop()
        taken = self.stack[place:]
        del self.stack[place:]
        return taken

    def _pairs(self, values: list[Any]) -> Iterator[tuple[Any, Any]]:
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Hashing a tuple of tuples that share their content could take for ever.
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
            raise self._refusal("has a name that is not a text")
        return Name(module, qualname)

    def _call(self, name: object, arguments: object) -> Any:
        """What stands for the result of the call: our function's result, or a record."""
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
        """Give a record its state. Attributes of an OrderedDict (torch's `_metadata`) are ignored."""
        target, state = self._take(2)
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            raise self._refusal(f"sets the state of {target if isinstance(target, Name) else type(target).__name__}")
        self.stack.append(target)

    def _refusal(self, deed: str) -> InvalidInput:
        return InvalidInput(
            f"{self.source}: its pickle {deed}, which no official checkpoint does; no code of the file was run",
            "do not load this file with any other program",
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:120]
