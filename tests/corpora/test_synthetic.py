import hashlib
from pathlib import Path

import numpy as np
import pytest

from speechclip.corpora.synthetic import MAX_CONCEPTS, make_synthetic, pronounce
from speechclip.corpora.table import read_table
from speechclip.errors import InvalidInput
from speechclip.media.decode import decode_audio, decode_image


def digest_of(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_synthetic(tmp_path / name, num_concepts=2, num_voices=6, seed=seed)
        digests.append(digest_of(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_every_file_is_whole_and_every_concept_has_every_voice(tmp_path: Path) -> None:
    manifest = read_table(str(make_synthetic(tmp_path, num_concepts=6, num_voices=6)))
    rows = manifest.rows()
    assert len({row["speech_key"] for row in rows}) == 36
    assert len({row["image_key"] for row in rows}) == len({row["text_key"] for row in rows}) == 6
    assert {row["audio_uri"].rpartition(".")[2] for row in rows} == {"wav", "flac", "ogg", "mp3"}
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    assert {row["speaker"] for row in rows if row["split"] == "test"} == {"synthetic-5"}
    for row in rows:
        waveform = decode_audio(Path(row["audio_uri"]).read_bytes(), name=row["audio_uri"])
        assert 0.3 < len(waveform) / 16_000 < 4
        picture = np.asarray(decode_image(Path(row["image_uri"]).read_bytes(), name=row["image_uri"]))
        assert picture[0, 0].tolist() == [255, 255, 255]
        assert (picture != 255).any()


def test_letters_sound_alike_in_a_voice_and_unlike_each_other() -> None:
    def spectrum(caption: str, voice: int) -> np.ndarray:
        power = np.abs(np.fft.rfft(pronounce(caption, voice=voice), 16_000))[:4_000].reshape(80, 50).mean(axis=1)
        return np.log(power) - np.log(power).mean()

    same = np.corrcoef(spectrum("aaaa", 0), spectrum("aaaaa", 0))[0, 1]
    other = np.corrcoef(spectrum("aaaa", 0), spectrum("rrrr", 0))[0, 1]
    assert same > 0.9 > other


@pytest.mark.parametrize(("num_concepts", "num_voices"), [(0, 2), (MAX_CONCEPTS + 1, 2), (3, 0)])
def test_impossible_sizes_are_refused(num_concepts: int, num_voices: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="concepts"):
        make_synthetic(tmp_path, num_concepts=num_concepts, num_voices=num_voices)
