"""Features: what is missing, what it will cost, and the job that computes it."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence

from speechclip.api.rows import open_manifest, open_store
from speechclip.config import RunSettings, Settings
from speechclip.export import Exported
from speechclip.featurization.driver import (
    Summary,
    Work,
    encode_inline,
    featurize_work,
    prepare_work,
    survey,
)
from speechclip.featurization.estimate import Estimate, estimate
from speechclip.featurization.progress import FeaturizeProgress
from speechclip.featurization.rejections import Rejection, list_rejected
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import Modality, Receipt
from speechclip.runtime_env import RuntimeEnv
from speechclip.spec import CodecName, Window
from speechclip.store import FeatureStore
from speechclip.store.feature_sets import choose_feature_set

logger = logging.getLogger(__name__)


def plan(
    manifest: Manifest | str,
    store: FeatureStore | str,
    *,
    speech: str | None = None,
    image: str | None = None,
    text: str | None = None,
    layers: Sequence[int] | None = None,
    codec: CodecName = "fp16",
    window: Window = "full",
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
) -> list[Estimate]:
    """What is stored, rejected and missing for each encoder, and the bytes, objects and time that the rest will take.

    Changes nothing. The arguments are those of `featurize`.
    """
    chosen, opened = open_manifest(manifest), open_store(store)
    encoders = [request.build() for request in _requests(speech, image, text, layers, codec, window)]
    coverage = survey(opened, chosen, [encoder.spec for encoder in encoders])
    return [estimate(part, encoder, opened, settings.tasks) for part, encoder in zip(coverage, encoders, strict=True)]


def featurize(
    manifest: Manifest | str,
    store: FeatureStore | str,
    *,
    speech: str | None = None,
    image: str | None = None,
    text: str | None = None,
    layers: Sequence[int] | None = None,
    codec: CodecName = "fp16",
    window: Window = "full",
    inline: bool = False,
    num_cpus: int | None = None,
    retry: Collection[str] = (),
    max_rejected: float | None = None,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
    on_progress: Callable[[FeaturizeProgress, bool], None] = lambda progress, is_last: None,
) -> Summary:
    """Compute every feature that the store does not have yet, commit it, and return the ledger.

    `speech`, `image` and `text` are encoder names, such as `hubert:facebook/hubert-base-ls960` and
    `clip:ViT-B-32/openai`; at least one is needed. `layers` are the hidden states of speech to keep (all by default),
    `codec` is how numbers are stored, `window` is `full` or `crops=K`. With `inline` this process does the work;
    otherwise Ray does, on the cluster that this process belongs to or on a private one with `num_cpus` CPUs. `retry`
    names reasons: assets that were rejected for them are tried again. `max_rejected` is a share from 0 to 1; more
    rejected assets stop the job. `settings` changes sizes and speed, never a value. `on_progress` is called every few
    seconds by a thread, and a last time with True.

    It is safe to stop the job and call it again: what was committed is kept and not encoded again.

    Raises `WorkLeft` if something is missing in the end or too much is rejected.
    """
    requests = _requests(speech, image, text, layers, codec, window)
    encoders = [(request, request.build().spec) for request in requests]
    work = prepare_work(open_store(store), open_manifest(manifest), encoders, settings.tasks, retry)
    return featurize_work(
        work,
        encode(work, settings, inline=inline, num_cpus=num_cpus),
        max_rejected=settings.max_rejected if max_rejected is None else max_rejected,
        group_seconds=settings.commit_seconds,
        on_progress=on_progress,
    )


def encode(
    work: Work,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
    *,
    inline: bool = False,
    num_cpus: int | None = None,
    runtime_env: RuntimeEnv | None = None,
    node_wait_seconds: float = 300.0,
    on_message: Callable[[str], None] = logger.info,
) -> Iterator[Receipt]:
    """The receipts of all open tasks of `work`, made in this process (`inline`) or by Ray."""
    if inline or not work.plan.num_tasks:
        return encode_inline(work, settings.batches)
    from speechclip.jobs.cluster import connect
    from speechclip.jobs.featurize import encode_on_ray

    connect(num_cpus or settings.num_cpus, runtime_env)
    return encode_on_ray(
        work,
        settings.batches,
        node_wait_seconds=node_wait_seconds,
        no_progress_seconds=settings.no_progress_seconds,
        notify=on_message,
    )


def rejected(manifest: Manifest | str, store: FeatureStore | str) -> list[Rejection]:
    """Every source of the manifest that could not become a feature, with its reason."""
    return list_rejected(open_store(store), open_manifest(manifest))


def export_webdataset(
    manifest: Manifest | str,
    store: FeatureStore | str,
    out: str,
    *,
    speech: str | None = None,
    image: str | None = None,
    text: str | None = None,
    version: int | str | None = None,
) -> Exported:
    """Write the stored features of each utterance as WebDataset tars into `out`, a folder or s3:// address.

    `speech`, `image` and `text` name feature sets where the store has several; of a modality with none, nothing is
    written. An utterance that lacks one of them is left out and counted.
    """
    from speechclip.export import export_webdataset as write

    snapshot = open_store(store).snapshot(version)
    named: dict[Modality, str | None] = {"speech": speech, "image": image, "text": text}
    stored = {info.spec.modality for info in snapshot.feature_sets() if not info.spec.is_of_head}
    chosen = {
        modality: choose_feature_set(snapshot, modality, name).fingerprint
        for modality, name in named.items()
        if name is not None or modality in stored
    }
    return write(snapshot, open_manifest(manifest), chosen, out)


def _requests(
    speech: str | None,
    image: str | None,
    text: str | None,
    layers: Sequence[int] | None,
    codec: CodecName,
    window: Window,
) -> list[EncoderRequest]:
    settings = Settings(
        speech=speech,
        image=image,
        text=text,
        layers=None if layers is None else tuple(layers),
        codec=codec,
        window=window,
    )
    return settings.encoder_requests()
