import hashlib
import os
from pathlib import Path

import pytest

from speechclip.errors import InvalidInput, SourceChanged, SourceMissing, SourceUnreadable
from speechclip.media.content import content_key, fetch, segment_key, text_key
from speechclip.records import Asset


def image_asset(path: Path, key: str) -> Asset:
    return Asset(key=key, modality="image", uri=str(path))


def test_keys_are_sha256_and_do_not_depend_on_names(tmp_path: Path) -> None:
    data = b"bytes of any kind"
    key = hashlib.sha256(data).hexdigest()
    assert content_key(data) == segment_key(key, None, None) == key
    assert segment_key(key, 5, 70) == f"{key}-5-70"
    assert text_key(" Un pingüí.") == hashlib.sha256(" Un pingüí.".encode()).hexdigest()
    for name in ("a.wav", "b ü.flac"):
        (tmp_path / name).write_bytes(data)
        segment = Asset(key=f"{key}-5-70", modality="speech", uri=str(tmp_path / name), start_sample=5, end_sample=70)
        assert fetch(segment) == data


def test_keys_of_no_segment_are_refused() -> None:
    for bounds in [(0, None), (5, 5), (-1, 4)]:
        with pytest.raises(InvalidInput):
            segment_key("0" * 64, *bounds)


def test_a_text_asset_is_its_utf8_bytes() -> None:
    assert fetch(Asset(key=text_key("ñ"), modality="text", text="ñ")) == "ñ".encode()
    with pytest.raises(SourceChanged):
        fetch(Asset(key=text_key("n"), modality="text", text="ñ"))


def test_bytes_that_changed_since_ingest_are_a_source_problem(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"new")
    with pytest.raises(SourceChanged, match="3 bytes"):
        fetch(image_asset(tmp_path / "a.png", content_key(b"old")))


def test_an_unreadable_source_and_a_missing_one_have_different_reasons(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop", tmp_path / "pipe"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    for path in (loop, pipe, tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(SourceUnreadable):
            fetch(image_asset(path, "0" * 64))
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "absent", tmp_path / "file" / "below"):
        with pytest.raises(SourceMissing):
            fetch(image_asset(path, "0" * 64))


def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # root may read everything, nobody may not
    try:
        with pytest.raises(SourceUnreadable, match="Permission denied"):
            fetch(image_asset(tmp_path / "secret", "0" * 64))
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("bounds", [(None, None), (5, 100), (0, 101), (0, None), (None, 100)])
def test_a_key_that_names_another_segment_is_refused(tmp_path: Path, bounds: tuple[int | None, int | None]) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    start, end = bounds
    forged = Asset(
        key=f"{content_key(b'x')}-0-100",
        modality="speech",
        uri=str(tmp_path / "a.wav"),
        start_sample=start,
        end_sample=end,
    )
    with pytest.raises(SourceChanged, match="names another segment"):
        fetch(forged)
    with pytest.raises(SourceChanged, match="names another segment"):
        fetch(
            Asset(key=content_key(b"x"), modality="speech", uri=str(tmp_path / "a.wav"), start_sample=0, end_sample=9)
        )


def test_an_asset_is_read_from_another_address_if_the_first_is_gone(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("gone", "changed", "folder", "whole")]
    paths[1].write_bytes(b"changed")
    paths[2].mkdir()
    paths[3].write_bytes(b"bytes")
    first, *others = map(str, paths)
    asset = Asset(key=content_key(b"bytes"), modality="image", uri=first, other_uris=tuple(others))
    assert fetch(asset) == b"bytes"
    paths[3].unlink()
    with pytest.raises(SourceMissing, match="gone: no such file"):
        fetch(asset)
