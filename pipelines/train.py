"""Train a head from the stored features on Ray Train.

    ray job submit --working-dir . -- python pipelines/train.py \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --recipe base-parallel-flickr8k \\
        --out s3://bucket/runs/base --workers 4

The same options as `speechclip train`; what `ray_config.yaml` already says can be left out.
"""

import sys
from pathlib import Path

# A job runs where the image or the working directory holds the project, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
