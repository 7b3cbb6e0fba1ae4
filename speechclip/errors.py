"""Every error we raise on purpose, grouped by what a handler does about it.

    SpeechClipError
    ├── InvalidInput          the caller changes something: an option, a config, a spec
    ├── StoreError            the store is not what its catalog says
    │   ├── Damaged               a checksum does not match: read again, then repair
    │   ├── NotStored             no committed feature by that name
    │   ├── LostRace              other writers were first, each time: run again later
    │   └── UnsupportedStore      a newer format, or a backend without conditional writes
    ├── StorageFailed         the storage did not answer, after all retries: mend that, run again
    │   └── StorageRefused        it answered no: another attempt goes no better
    ├── MachineFailed         no memory, no disk, a killed decoder: nothing is said of the asset, run again
    ├── WorkLeft              the run ended early on purpose; what was done is kept (exit code 3)
    └── Rejected              this asset can't become a feature; record it and go on
        ├── by the bytes          Undecodable, Truncated, EmptyAudio, Silent, TooShort, TooLong, NotFinite,
        │                         BrokenImage, EmptyText
        └── SourceProblem         SourceMissing, SourceChanged, SourceUnreadable, SegmentOutside, DecoderMissing

Each error has two parts: `problem` (what happened, with the values) and `advice` (what to do). `str(error)` joins
them by a semicolon. Both are positional arguments, so an error can be pickled and reaches the driver from a Ray worker
unchanged. A class may have a standard advice, so that the code that raises it need not know the command line.
"""

from typing import ClassVar


class SpeechClipError(Exception):
    """The root: `except SpeechClipError` catches what we raise on purpose and no bug."""

    standard_advice: ClassVar[str] = ""

    def __init__(self, problem: str, advice: str | None = None) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = self.standard_advice if advice is None else advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}" if self.advice else self.problem


class InvalidInput(SpeechClipError):
    """Something the caller gave can't be used as it is."""


class StoreError(SpeechClipError):
    """The store is not what its catalog says it is."""


class Damaged(StoreError):
    """Stored bytes do not match their checksum."""


class NotStored(StoreError):
    """The snapshot holds no such feature."""


class LostRace(StoreError):
    """Other writers were first at every attempt; nothing was changed."""


class UnsupportedStore(StoreError):
    """This store can't be read or written safely by this version of the code."""


class StorageFailed(SpeechClipError):
    """The storage did not answer, after all retries; all that was committed is kept."""


class StorageRefused(StorageFailed):
    """The storage answered no, or what leads there is wrong: another attempt goes no better."""


class MachineFailed(SpeechClipError):
    """This machine could not decode an asset for want of memory or disk; that says nothing of the asset."""


class WorkLeft(SpeechClipError):
    """The run stopped with work left or with too much rejected; all that was committed is kept."""


class Rejected(SpeechClipError):
    """The asset can't become a feature because of its bytes: recorded in the catalog, for every manifest."""

    reason: ClassVar[str] = "rejected"


class Undecodable(Rejected):
    """No decoder recognises or survives the bytes."""

    reason = "undecodable"


class Truncated(Rejected):
    """The container says that more should follow than is there."""

    reason = "truncated"


class EmptyAudio(Rejected):
    """No bytes, or a header without samples."""

    reason = "empty-audio"


class Silent(Rejected):
    """Digital silence: no two samples differ by half a 16-bit step."""

    reason = "silent"


class TooShort(Rejected):
    """Fewer samples than the encoder needs for one frame."""

    reason = "too-short"


class TooLong(Rejected):
    """More samples than the encoder's window rule takes."""

    reason = "too-long"


class NotFinite(Rejected):
    """NaN or infinity among the samples, or in the feature."""

    reason = "not-finite"


class BrokenImage(Rejected):
    """The picture can't be decoded to RGB."""

    reason = "broken-image"


class EmptyText(Rejected):
    """Nothing but white space."""

    reason = "empty-text"


class SourceProblem(Rejected):
    """The bytes could not be had: belongs to one manifest and its source, never to the asset."""

    reason = "source"


class SourceMissing(SourceProblem):
    """Nothing lies at the source's address."""

    reason = "source-missing"


class SourceChanged(SourceProblem):
    """The source's bytes are not those that were ingested."""

    reason = "source-changed"


class SourceUnreadable(SourceProblem):
    """The source is there and can't be read: permission, a directory, a loop of links."""

    reason = "source-unreadable"


class SegmentOutside(SourceProblem):
    """The row's segment holds nothing of its recording."""

    reason = "segment-outside"


class DecoderMissing(SourceProblem):
    """This machine lacks the decoder that the format needs (ffmpeg for m4a and webm)."""

    reason = "decoder-missing"


# What an asset or a source can be rejected for, as `speechclip rejected` lists it.
REASONS = tuple(
    kind.reason
    for kind in (
        Undecodable, Truncated, EmptyAudio, Silent, TooShort, TooLong, NotFinite, BrokenImage, EmptyText,
        SourceMissing, SourceChanged, SourceUnreadable, SegmentOutside, DecoderMissing,
    )
)  # fmt: skip
