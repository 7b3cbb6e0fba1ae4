"""Store an embedding of every utterance of a manifest, so that `query` can find them.

    ray job submit --working-dir . -- python pipelines/embed.py \\
        --run s3://bucket/runs/base \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store

The options are those of `speechclip embed`. Leave out what `ray_config.yaml` sets already.
"""

import sys
from pathlib import Path

# The project need not be installed where the job runs: it is imported from the folder above this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
