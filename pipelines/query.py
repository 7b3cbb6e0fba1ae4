"""Ask the store by text, recording or picture.

    ray job submit --working-dir . -- python pipelines/query.py \\
        --run s3://bucket/runs/base \\
        --store s3://bucket/store \\
        --text "a dog runs"

The same options as `speechclip query`; what `ray_config.yaml` already says can be left out.
"""

import sys
from pathlib import Path

# A job runs where the image or the working directory holds the project, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["query", *sys.argv[1:]])
