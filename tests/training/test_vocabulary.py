import pytest

from speechclip.errors import InvalidInput
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary, count_tokens

CAPTIONS = ["a dog runs", "a dog", "a cat runs .", " ", "a\x07"]


def test_tokens_are_sorted_by_count_and_padding_is_counted_too():
    vocabulary = count_tokens(CAPTIONS)
    words = vocabulary.words(range(len(vocabulary)))
    # Padding fills most of the 77 positions. `a`, start and end occur once in each of the four captions with a word.
    assert vocabulary.ids[:4] == (PADDING, 320, START, END)
    assert words[4:] == ["dog</w>", "runs</w>", ".</w>", "cat</w>"]
    assert vocabulary.ids[4] < vocabulary.ids[5]
    assert vocabulary.ids[6] < vocabulary.ids[7]


def test_the_digest_of_a_vocabulary_depends_on_the_order_of_its_ids():
    first, second = Vocabulary(ids=(0, 320, START, END)), Vocabulary(ids=(0, START, 320, END))
    assert first.digest != second.digest
    assert Vocabulary(ids=(0, 320, START, END)).digest == first.digest


@pytest.mark.parametrize("ids", [(0, 1, START), (0, 0, START, END), (START, END)])
def test_a_vocabulary_without_a_special_token_or_with_an_id_twice_is_an_error(ids: tuple[int, ...]):
    with pytest.raises(InvalidInput, match="each must occur once"):
        Vocabulary(ids=ids)


@pytest.mark.parametrize("strange", [-1, END + 1, 10**12])
def test_an_id_that_clip_does_not_have_is_an_error(strange: int):
    with pytest.raises(InvalidInput, match=f"token {strange}, CLIP has 0 to {END}"):
        Vocabulary(ids=(PADDING, START, END, strange))


def test_without_captions_the_vocabulary_has_the_three_special_tokens():
    assert count_tokens([]).ids == (PADDING, START, END)
