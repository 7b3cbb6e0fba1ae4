"""Every error that speechclip raises on purpose, grouped by what the caller can do.

    SpeechClipError
    ├── InvalidInput          change an option, a file or an argument
    ├── StoreError            the store is not as its catalog states
    │   ├── Damaged               a checksum does not match, or a file is gone: repair the store
    │   ├── NotStored             the store or the feature is not there
    │   ├── LostRace              other writers were first at every attempt: run again later
    │   └── UnsupportedStore      the format is newer than this code, or the backend can't keep writers apart
    ├── StorageFailed         the storage did not answer, after all retries: remove the cause and run again
    │   └── StorageRefused        the storage said no, so another attempt would not help
    ├── MachineFailed         no memory, no disk or a killed decoder: the asset may be fine, run again
    ├── WorkLeft              the run ended early on purpose and keeps what it committed (exit code 3)
    └── Rejected              this asset can't become a feature: record the reason and go on
        ├── by its bytes          Undecodable, Truncated, EmptyAudio, Silent, TooShort, TooLong, NotFinite,
        │                         BrokenImage, EmptyText
        └── SourceProblem         SourceMissing, SourceChanged, SourceUnreadable, SegmentOutside, DecoderMissing

Each error has two parts: `problem` says what happened, with the values, and `advice` says what to do. `str(error)`
joins them by a semicolon. Both are positional arguments, so an error can be pickled and comes from a Ray worker to the
driver unchanged. A class may have a standard advice. Then the code that raises it need not know the command line.

    raise Damaged("frames/3f/t-0.tar: the file is gone")
    # frames/3f/t-0.tar: the file is gone; run `speechclip repair`
"""

from typing import ClassVar


class SpeechClipError(Exception):
    """The base class: `except SpeechClipError` catches every error raised on purpose, and no bug."""

    standard_advice: ClassVar[str] = ""

    def __init__(self, problem: str, advice: str | None = None) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = self.standard_advice if advice is None else advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}" if self.advice else self.problem


class InvalidInput(SpeechClipError):
    """Something that the caller gave can't be used as it is."""


class StoreError(SpeechClipError):
    """The store is not as its catalog states."""


class Damaged(StoreError):
    """Stored bytes do not match their checksum, or a file is gone that must be there."""

    standard_advice = "run `speechclip repair`"


class NotStored(StoreError):
    """There is no such store, version or feature."""

    standard_advice = (
        "run `speechclip featurize` to add what is missing, or `speechclip history` to see what each version holds"
    )


class LostRace(StoreError):
    """Other writers were first at every attempt. Nothing was changed."""

    standard_advice = "run the command again later"


class UnsupportedStore(StoreError):
    """This version of the code can't safely read or write this store."""

    standard_advice = "use a backend that honours conditional writes"


class StorageFailed(SpeechClipError):
    """The storage did not answer, after all retries. Everything committed before is kept."""


class StorageRefused(StorageFailed):
    """The storage said no, or its address or credentials are wrong. Another attempt would not help."""


class MachineFailed(SpeechClipError):
    """This machine had too little memory or disk to decode an asset. The asset itself may be fine."""


class WorkLeft(SpeechClipError):
    """The run stopped with work left, or with too many rejected assets. Everything committed before is kept."""


class Rejected(SpeechClipError):
    """The asset can't become a feature because of its bytes. The catalog records that for every manifest."""

    reason: ClassVar[str] = "rejected"


class Undecodable(Rejected):
    """No decoder can read the bytes, or the decoder crashes."""

    reason = "undecodable"


class Truncated(Rejected):
    """The file is shorter than its own header says."""

    reason = "truncated"


class EmptyAudio(Rejected):
    """The file is empty, or has a header but no samples."""

    reason = "empty-audio"


class Silent(Rejected):
    """Digital silence: no two samples differ by half a 16-bit step."""

    reason = "silent"


class TooShort(Rejected):
    """Fewer samples than the encoder needs for one frame."""

    reason = "too-short"


class TooLong(Rejected):
    """More samples than the encoder's window rule allows."""

    reason = "too-long"


class NotFinite(Rejected):
    """NaN or infinity among the samples or in the feature."""

    reason = "not-finite"


class BrokenImage(Rejected):
    """The picture can't be decoded to RGB."""

    reason = "broken-image"


class EmptyText(Rejected):
    """The text is empty or only white space."""

    reason = "empty-text"


class SourceProblem(Rejected):
    """The bytes could not be read from their source. The catalog records that for one manifest, not for the asset."""

    reason = "source"


class SourceMissing(SourceProblem):
    """There is no file at the source's address."""

    reason = "source-missing"


class SourceChanged(SourceProblem):
    """The source's bytes have changed since they were ingested."""

    reason = "source-changed"


class SourceUnreadable(SourceProblem):
    """The source is there but can't be read: no permission, a directory, or a loop of links."""

    reason = "source-unreadable"


class SegmentOutside(SourceProblem):
    """The segment begins after the end of its recording."""

    reason = "segment-outside"


class DecoderMissing(SourceProblem):
    """This machine lacks the decoder that the format needs (ffmpeg for m4a and webm)."""

    reason = "decoder-missing"


# The reasons for which an asset can be rejected, as `speechclip rejected` lists them.
REASONS = tuple(
    kind.reason
    for kind in (
        Undecodable, Truncated, EmptyAudio, Silent, TooShort, TooLong, NotFinite, BrokenImage, EmptyText,
        SourceMissing, SourceChanged, SourceUnreadable, SegmentOutside, DecoderMissing,
    )
)  # fmt: skip
