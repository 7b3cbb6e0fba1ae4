"""Compute every missing feature of a manifest on Ray Data and commit it to the store.

    ray job submit --working-dir . -- python pipelines/featurize.py \\
        --manifest s3://bucket/m.parquet \\
        --store s3://bucket/store \\
        --speech hubert:facebook/hubert-base-ls960 \\
        --image clip:ViT-B-32/openai \\
        --text clip:ViT-B-32/openai

The same options as `speechclip featurize`; what `ray_config.yaml` already says can be left out.
"""

import sys
from pathlib import Path

# A job runs where the image or the working directory holds the project, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speechclip.cli import main

if __name__ == "__main__":
    main(["featurize", *sys.argv[1:]])
