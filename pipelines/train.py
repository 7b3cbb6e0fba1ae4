"""Train a head from stored features, on Ray Train.

    ray job submit --working-dir . -- python pipelines/train.py \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --recipe base-parallel-flickr8k \\
        --out s3://bucket/runs/base --workers 4

The options are those of `speechclip train`. Leave out what `ray_config.yaml` sets already.
"""

import sys
from pathlib import Path

# The project need not be installed where the job runs: it is imported from the folder above this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
