"""Files in a local folder or on S3: `Storage`, and functions that read single files."""

from speechclip.storage.storage import THREADS, Storage, parse_parquet, read_uri, split_uri

__all__ = ["THREADS", "Storage", "parse_parquet", "read_uri", "split_uri"]
