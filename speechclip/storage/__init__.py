"""Bytes on a local folder or on S3: `Storage` and what reads single files through it."""

from speechclip.storage.storage import THREADS, Storage, parse_parquet, read_uri, split_uri

__all__ = ["THREADS", "Storage", "parse_parquet", "read_uri", "split_uri"]
