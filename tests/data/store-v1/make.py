"""How tests/data/store-v1 was made, once: a store of format 1 with everything that a store can hold. Never run again.

In the folders /corpus and /store, so that no address in it belongs to a machine.
"""

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from support.feature_sets import content

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.featurization.driver import GroupCommitter, commit_receipts, encode_inline, prepare_work
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.records import MODALITIES
from speechclip.store import FeatureStore, catalog

catalog.CHECKPOINT_EVERY = 4
for folder in ("/corpus", "/store"):
    shutil.rmtree(folder, ignore_errors=True)
rows_file = make_synthetic(Path("/corpus"), num_concepts=3, num_voices=2)
Path("/corpus/cut.ogg").write_bytes(b"OggS, and no more")
with open(rows_file, newline="") as file:
    rows = list(csv.DictReader(file))
rows.append(rows[0] | {"audio": "cut.ogg", **({"id": "cut"} if "id" in rows[0] else {})})
with open(rows_file, "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
manifest = read_table(str(rows_file))
victim = Path(manifest.rows()[1]["audio_uri"])
victim.write_bytes(victim.read_bytes() + b"changed")

store = FeatureStore("/store")
requests = [
    EncoderRequest(
        encoder_name="toy", modality=modality, layers=(0, 1, 2) if modality == "speech" else None, codec=codec
    )
    for modality in MODALITIES
    for codec in (("fp16", "fp32") if modality == "speech" else ("fp16",))
]


def featurize(part):
    work = prepare_work(store, part, [(r, r.build().spec) for r in requests], TaskSizes(shard_items=3, chunk_rows=2))
    commit_receipts(encode_inline(work), GroupCommitter(work, group_size=2))


featurize(type(manifest)(manifest.table.slice(0, 4)))
featurize(manifest)
store.tags.create("before-the-drop", store.snapshot().version)
tagged = content(store.snapshot())
fp32 = requests[1].build().spec.fingerprint
store.drop({fp32: None}, job="drop")
store.compact(min_files=2)
names = {"newest": content(store.snapshot()), "before-the-drop": tagged}
expected = {
    name: {
        f"{feature_set} {key}": hashlib.sha256(data).hexdigest() for (feature_set, key), data in sorted(found.items())
    }
    for name, found in names.items()
}
rejected = {
    info.fingerprint: sorted(
        (row["asset"], row["reason"])
        for row in store.snapshot().rejections(info.fingerprint, manifest.digest).to_pylist()
    )
    for info in store.snapshot().feature_sets()
}
Path(sys.argv[1]).write_text(
    json.dumps(
        {"manifest": manifest.digest, "version": store.snapshot().version, "features": expected, "rejected": rejected},
        indent=1,
    )
    + "\n"
)
