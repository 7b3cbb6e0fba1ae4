"""What exists: a corpus on disk or on S3, read into a manifest."""
