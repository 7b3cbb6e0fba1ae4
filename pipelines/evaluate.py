"""Measure the recall of a trained head, in both directions and beside chance.

    ray job submit --working-dir . -- python pipelines/evaluate.py \\
        --run s3://bucket/runs/base \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --split test

The options are those of `speechclip evaluate`. Leave out what `ray_config.yaml` sets already.
"""

import sys
from pathlib import Path

# The project need not be installed where the job runs: it is imported from the folder above this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
