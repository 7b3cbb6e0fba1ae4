"""A pickle that would run code is refused, any other is read as data; neither runs code."""

import contextlib
import copyreg
import os
import pickle
import pickletools
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from support.counts import count

from speechclip.errors import InvalidInput
from speechclip.official.pickles import Inert, Name, read_pickle


def refuse_persistent(found: object) -> object:
    raise InvalidInput(f"strange storage {found!r}")


def read(data: bytes) -> Any:
    build = {"collections.OrderedDict": lambda arguments: {}}
    return read_pickle(data, "x.ckpt", build=build, persistent=refuse_persistent)


class Calls:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


class Wakes:
    """A class with code that runs when pickle loads an object of it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __setstate__(self, state: Any) -> None:
        Path(state["marker"]).touch()

    def __getstate__(self) -> Any:
        return {"marker": str(self.marker)}


MODULE = sys.modules[__name__]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python's pickle find the classes of this module by name."""
    monkeypatch.setitem(sys.modules, __name__, MODULE)


def touch(marker: Path) -> str:
    return f"touch {marker}"


def evil(kind: str, marker: Path) -> bytes:
    """A pickle that creates the file `marker` when Python's pickle loads it."""
    command = touch(marker)
    quoted = f"S'{command}'\n".encode()
    python = f"open({str(marker)!r}, 'w').close()"
    match kind:
        case "os.system":
            return b"cos\nsystem\n(" + quoted + b"tR."
        case "posix.system":
            return pickle.dumps(Calls(os.system, command), 2)
        case "builtins.exec":
            return pickle.dumps(Calls(exec, python), 4)
        case "__builtin__.eval":
            return pickle.dumps(Calls(eval, python), 2)
        case "subprocess.Popen":
            return pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)]), 4)
        case "builtins.map":
            return pickle.dumps(Calls(map, eval, [python]), 4)
        case "__builtin__.getattr":
            return pickle.dumps(Calls(getattr, [], "append"), 2)
        case "builtins.exec.__call__":
            return _short("builtins", "exec.__call__", python)
        case "a nested one":
            config = OrderedDict(trainer=OrderedDict(logger=[Calls(os.system, command)]))
            return pickle.dumps({"state_dict": OrderedDict(), "hyper_parameters": {"config": config}}, 2)
        case "INST":
            return b"(" + quoted + b"ios\nsystem\n."
        case "OBJ":
            return b"(cos\nsystem\n" + quoted + b"o."
        case "EXT1":
            return b"\x80\x02\x82\xf0(" + quoted + b"tR."
    raise AssertionError(kind)


def _short(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function by the opcode STACK_GLOBAL, whose names may have dots."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    text = b"X" + len(argument).to_bytes(4, "little") + argument.encode()
    return b"\x80\x04" + words + b"\x93" + text + b"\x85R."


EVIL = {
    "os.system": "would call os.system",
    "posix.system": "would call posix.system",
    "builtins.exec": "would call builtins.exec",
    "__builtin__.eval": "would call __builtin__.eval",
    "subprocess.Popen": "would call subprocess.Popen",
    "builtins.map": "would call builtins.map",
    "__builtin__.getattr": "would call __builtin__.getattr",
    "builtins.exec.__call__": r"would call builtins\.exec\.__call__",
    "a nested one": "would call posix.system",
    "INST": "uses the opcode INST",
    "OBJ": "uses the opcode OBJ",
    "EXT1": "uses the opcode EXT1",
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_pickle_that_would_run_code_is_refused_in_one_sentence_and_not_run(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(InvalidInput, match=EVIL[kind]) as refusal:
        read(evil(kind, marker))
    assert not marker.exists()
    assert "\n" not in str(refusal.value)


# The kinds that Python's pickle runs at once, with only a shell.
AT_ONCE = [
    "os.system", "posix.system", "builtins.exec", "__builtin__.eval", "builtins.exec.__call__", "a nested one", "INST",
    "OBJ", "EXT1",
]  # fmt: skip


@pytest.mark.parametrize("kind", AT_ONCE)
def test_the_same_pickle_runs_its_code_in_pickle_itself(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        pickle.loads(evil(kind, marker))
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)
    assert os.path.exists(marker)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_object_of_any_class_is_a_record_and_its_own_code_does_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data = pickle.dumps({"logger": Wakes(marker)}, protocol)
    found = read(data)["logger"]
    assert isinstance(found, Inert)
    assert found.kind == Name(Wakes.__module__, "Wakes")
    assert found.state == {"marker": str(marker)}
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_arrive_as_they_are(protocol: int) -> None:
    values = {
        "numbers": [0, 1, -1, 255, 65_536, 2**70, True, False, None, 1.5, float("inf")],
        "text": ("", "word", "ünïcode", "line\nbreak"),
        "nested": {"a": {"b": [()], 3: "x"}, None: ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
        "ordered": OrderedDict(b=1, a=2),
    }
    shared = [1]
    found = read(pickle.dumps(values | {"twice": [shared, shared]}, protocol))
    assert found == values | {"twice": [[1], [1]]}
    assert found["twice"][0] is found["twice"][1]


def test_ordinary_calls_become_records() -> None:
    found = read(pickle.dumps({"path": Path("a/b"), "set": {1}, "bytes": b"x", "shape": range}, 2))
    assert (found["path"].kind, found["path"].arguments) == (Name("pathlib", "PosixPath"), ("a", "b"))
    assert found["shape"] == Name("__builtin__", "xrange")


def test_a_record_can_be_filled_as_a_mapping_or_a_list() -> None:
    data = b"\x80\x02cmine\nTable\n)\x81X\x01\x00\x00\x00aK\x01sK\x02a."
    found = read(data)
    assert (found.items, found.entries) == ({"a": 1}, [2])


STRANGE = {
    "a key that takes for ever to hash": (pickle.dumps({((1,),): 1}, 2), "a key of the kind tuple"),
    "the state of a name": (b"\x80\x02cos\nsystem\n}b.", "sets the state of os.system"),
    "items of a name": (b"\x80\x02cos\nsystem\nK\x01K\x02s.", "sets items of Name"),
    "an append to a number": (b"\x80\x02K\x01K\x02a.", "appends to int"),
    "an object of no class": (b"\x80\x02K\x01)\x81.", "something that is no class"),
    "a name of numbers": (b"\x80\x04K\x01K\x02\x93.", "a name that is not a text"),
    "a call of a record": (b"\x80\x02cmine\nTable\n)\x81)R.", "would call Inert"),
    "a call without a tuple": (b"\x80\x02cpathlib\nPosixPath\n]R.", "a call without arguments"),
    "a storage of a strange kind": (b"\x80\x02K\x07Q.", "strange storage 7"),
    "a storage named in text": (b"Pstorage\n.", "strange storage 'storage'"),
    "an out-of-band buffer": (b"\x80\x05\x97.", "uses the opcode NEXT_BUFFER"),
    "no end": (b"\x80\x02K\x01", "damaged"),
    "an empty stack": (b"\x80\x02.", "damaged"),
    "nothing": (b"", "damaged"),
    "an unknown memo": (b"\x80\x02h\x07.", "damaged"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "an odd number of items": (b"\x80\x02}(K\x01u.", "damaged"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_no_checkpoint_holds_is_refused(what: str) -> None:
    data, sentence = STRANGE[what]
    with pytest.raises(InvalidInput, match=sentence):
        read(data)


def test_bytes_flipped_at_random_run_nothing_and_end_in_a_value_or_a_sentence(tmp_path: Path) -> None:
    """Here no checksum of a zip finds the changed bytes first."""
    marker = tmp_path / "ran"
    content = {"a": [1, 2.5, "text", (1, 2)], "b": Wakes(marker), "c": OrderedDict(d=Path("x")), "e": {1, 2}}
    originals = [pickle.dumps(content, protocol) for protocol in (2, 4)]
    originals.append(evil("os.system", marker))
    for seed in range(count(400, 10_000)):
        generator = random.Random(seed)
        data = bytearray(generator.choice(originals))
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.choice(
                [generator.randrange(256), ord("R"), ord("b"), 0x81]
            )
        with contextlib.suppress(InvalidInput):
            read(bytes(data))
        assert not marker.exists(), seed


def test_every_opcode_is_read_or_refused() -> None:
    """This fails when a new Python adds an opcode."""
    known = {opcode.name for opcode in pickletools.opcodes}
    assert len(known) == 68
