import pytest

from speechclip.errors import InvalidInput
from speechclip.training.vocabulary import END, PADDING, START, Vocabulary, count_tokens

CAPTIONS = ["a dog runs", "a dog", "a cat runs .", " ", "a\x07"]


def test_words_stand_by_falling_count_after_padding_which_is_counted_too():
    vocabulary = count_tokens(CAPTIONS)
    words = vocabulary.words(range(len(vocabulary)))
    # In 77 places padding is most frequent; `a`, start and end stand once in each caption of the four that hold a word.
    assert vocabulary.ids[:4] == (PADDING, 320, START, END)
    assert words[4:] == ["dog</w>", "runs</w>", ".</w>", "cat</w>"]
    assert vocabulary.ids[4] < vocabulary.ids[5]
    assert vocabulary.ids[6] < vocabulary.ids[7]


def test_a_vocabulary_is_known_by_its_ids_in_their_order():
    first, second = Vocabulary(ids=(0, 320, START, END)), Vocabulary(ids=(0, START, 320, END))
    assert first.digest != second.digest
    assert Vocabulary(ids=(0, 320, START, END)).digest == first.digest


@pytest.mark.parametrize("ids", [(0, 1, START), (0, 0, START, END), (START, END)])
def test_a_vocabulary_without_start_end_and_padding_or_with_one_twice_is_refused(ids: tuple[int, ...]):
    with pytest.raises(InvalidInput, match="each must occur once"):
        Vocabulary(ids=ids)


@pytest.mark.parametrize("strange", [-1, END + 1, 10**12])
def test_an_id_that_clip_does_not_have_is_refused(strange: int):
    with pytest.raises(InvalidInput, match=f"token {strange}, CLIP has 0 to {END}"):
        Vocabulary(ids=(PADDING, START, END, strange))


def test_no_caption_at_all_leaves_the_three_that_are_always_there():
    assert count_tokens([]).ids == (PADDING, START, END)
