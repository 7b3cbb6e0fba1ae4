"""Corpora: read a corpus on disk or on S3 into a manifest."""
