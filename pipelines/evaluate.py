"""Recall of a trained head, both directions, beside chance.

    ray job submit --working-dir . -- python pipelines/evaluate.py \\
        --run s3://bucket/runs/base \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --split test

The same options as `speechclip evaluate`; what `ray_config.yaml` already says can be left out.
"""

import sys
from pathlib import Path

# A job runs where the image or the working directory holds the project, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
