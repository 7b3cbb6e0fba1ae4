"""Compute the features of a manifest that the store does not have yet, on Ray Data.

    ray job submit --working-dir . -- python pipelines/featurize.py \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --speech hubert:facebook/hubert-base-ls960 \\
        --image clip:ViT-B-32/openai \\
        --text clip:ViT-B-32/openai

The options are those of `speechclip featurize`. Leave out what `ray_config.yaml` sets already.
"""

import sys
from pathlib import Path

# The project need not be installed where the job runs: it is imported from the folder above this file.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["featurize", *sys.argv[1:]])
