"""Find the stored utterances or pictures that are nearest to a text, a recording or a picture.

    ray job submit --working-dir . -- python pipelines/query.py \\
        --run s3://bucket/runs/base \\
        --store s3://bucket/store \\
        --text "a dog runs"

The options are those of `speechclip query`. Leave out what `ray_config.yaml` sets already.
"""

import sys
from pathlib import Path

# The project need not be installed where the job runs: it is imported from the folder above this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["query", *sys.argv[1:]])
