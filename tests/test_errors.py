"""Errors carry what happened apart from what to do, and cross a process unchanged."""

import pickle

from speechclip.errors import Damaged, LostRace, NotStored, SpeechClipError, UnsupportedStore


class _Advised(SpeechClipError):
    standard_advice = "ask for help"


def test_an_error_joins_problem_and_advice_by_a_semicolon() -> None:
    error = Damaged("a.tar: 3 bytes are missing", "run `speechclip repair`")
    assert (error.problem, error.advice) == ("a.tar: 3 bytes are missing", "run `speechclip repair`")
    assert str(error) == "a.tar: 3 bytes are missing; run `speechclip repair`"


def test_a_class_may_bring_its_own_advice() -> None:
    assert str(_Advised("it broke")) == "it broke; ask for help"
    assert str(_Advised("it broke", "")) == "it broke"
    assert str(_Advised("it broke", "sleep")) == "it broke; sleep"


def test_errors_of_the_store_say_what_to_do_without_being_told() -> None:
    assert str(Damaged("a.tar: the file is gone")) == "a.tar: the file is gone; run `speechclip repair`"
    for kind in (Damaged, NotStored, LostRace, UnsupportedStore):
        assert kind("x").advice
        assert kind("x", "y").advice == "y"


def test_an_error_is_pickled_with_both_parts() -> None:
    for error in (_Advised("it broke"), Damaged("a", "b"), Damaged("a")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.problem, again.advice) == (type(error), error.problem, error.advice)
