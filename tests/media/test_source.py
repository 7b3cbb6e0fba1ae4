import os
from pathlib import Path

import boto3
import pytest

from speechclip.errors import SourceChanged, SourceMissing, SourceUnreadable
from speechclip.media.source import range_address, read_source


def test_a_file_too_large_to_be_read_whole_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", (1 << 32) + 1)
    with pytest.raises(SourceUnreadable, match="4294967297 bytes"):
        read_source(str(tmp_path / "sparse"))
    with pytest.raises(SourceUnreadable, match="zero byte"):
        read_source("a\0b")


def test_a_range_of_a_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a#b.tar").write_bytes(b"0123456789")
    path = str(tmp_path / "a#b.tar")
    assert read_source(range_address(path, 3, 4)) == b"3456"
    assert read_source(range_address(path, 10, 0)) == b""
    with pytest.raises(SourceChanged, match=r"#offset=8&size=4: only 2 of these bytes are there"):
        read_source(range_address(path, 8, 4))
    with pytest.raises(SourceUnreadable, match="4294967297 bytes"):
        read_source(range_address(path, 0, (1 << 32) + 1))
    with pytest.raises(SourceMissing, match=r"gone.tar#offset=0&size=1: no such file"):
        read_source(range_address(str(tmp_path / "gone.tar"), 0, 1))


def test_a_range_of_a_large_file_is_read_though_the_whole_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", (1 << 32) + 9)
    assert read_source(range_address(str(tmp_path / "sparse"), (1 << 32), 9)) == bytes(9)


def test_a_range_of_an_object_is_one_request(s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    boto3.client("s3").put_object(Bucket=bucket, Key="a.tar", Body=b"0123456789")
    assert read_source(range_address(f"s3://{bucket}/a.tar", 3, 4)) == b"3456"
    for offset in (8, 10, 99):
        with pytest.raises(SourceChanged, match="of these bytes are there"):
            read_source(range_address(f"s3://{bucket}/a.tar", offset, 4))
    with pytest.raises(SourceMissing):
        read_source(range_address(f"s3://{bucket}/gone.tar", 3, 4))
