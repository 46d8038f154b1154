"""The kind `media_uniq`: of every source picture one rendition per account, and a manifest.

A rendition has the size and format of a named platform spec, may carry a watermark that names the
account, and holds no metadata. How near it still is to its source is measured and reported.
Needs Pillow, which `pip install 'haulier[media]'` brings.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from haulier.domain.job import Job, JobState
from haulier.exceptions import (
    PermanentError,
    Problem,
    ResourceNotAvailableError,
    ValidationError,
)
from haulier.runners import _rendition
from haulier.runners._cache import SharedCache
from haulier.runners._files import open_plain, replacing, safe_names, sync_folder
from haulier.runners._manifest import ManifestWriter
from haulier.runners.base import BaseTaskRunner, BatchFinished
from haulier.runners.csv_input import MAX_ACCOUNT, account_fault
from haulier.runners.media_spec import (
    SPECS,
    FilePath,
    ImageWatermark,
    PlatformSpec,
    TextWatermark,
)
from haulier.services.context import Context

MAX_SOURCE = 256 * 1024 * 1024
"""Bytes of a source file, at most."""

CACHE_BYTES = 256 * 1024 * 1024
"""How much the pixels kept for the next account may weigh, per process."""

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Which files of a folder are taken for pictures. A file named by itself may be called anything."""

_MAX_TOLD = 10
_PAGE = 500

FileName = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^./\\\x00][^/\\\x00]*$")
]


class PictureError(PermanentError):
    """A picture cannot be worked on, now or later."""


class CorruptPictureError(PictureError):
    """The file is a picture, but damaged or cut off."""


class UnsupportedPictureError(PictureError):
    """The file is no picture, or one of a kind or size that is not taken."""


class SourceError(ResourceNotAvailableError):
    """A file that was there when the batch was started cannot be read now."""


class OutputError(ResourceNotAvailableError):
    """A result cannot be written: no space, no permission, no folder."""


class MediaUniqStart(BaseModel):
    """What to render: every source picture for every account, into one folder.

    A source that is a folder stands for the pictures in it, by name. Relative paths are taken from
    where the job is enqueued. `spec` is the name of one of SPECS or a whole spec.
    """

    model_config = ConfigDict(extra="forbid")

    accounts: list[str] = Field(min_length=1)
    sources: list[FilePath] = Field(min_length=1)
    output: FilePath
    spec: str | PlatformSpec = "square"
    watermark: TextWatermark | ImageWatermark | None = None

    @property
    def platform_spec(self) -> PlatformSpec:
        """The spec itself, looked up if it was named."""
        return SPECS[self.spec] if isinstance(self.spec, str) else self.spec

    @field_validator("accounts")
    @classmethod
    def _usable(cls, accounts: list[str]) -> list[str]:
        first: dict[str, int] = {}
        faults = []
        for number, name in enumerate(accounts):
            if fault := account_fault(name):
                faults.append(f"number {number} {fault}")
            elif first.setdefault(name, number) != number:
                faults.append(f"number {number} is the same as number {first[name]}")
        if faults:
            more = f"; and {len(faults) - _MAX_TOLD} more" if len(faults) > _MAX_TOLD else ""
            raise ValueError("; ".join(faults[:_MAX_TOLD]) + more)
        return accounts

    @field_validator("spec")
    @classmethod
    def _known(cls, spec: str | PlatformSpec) -> str | PlatformSpec:
        if isinstance(spec, str) and spec not in SPECS:
            raise ValueError(f"no spec is called {spec[:60]!r}; there are {', '.join(SPECS)}")
        return spec


class MediaUniqItem(BaseModel):
    """One rendition to make, into `<output>/<folder>/<stem>__<spec>.<ext>`.

    `folder` and `stem` are the file names that the account and the source got within their batch.
    """

    model_config = ConfigDict(extra="forbid")

    account: str = Field(min_length=1, max_length=MAX_ACCOUNT)
    source: FilePath
    output: FilePath
    folder: FileName
    stem: FileName
    spec: PlatformSpec
    watermark: TextWatermark | ImageWatermark | None = None

    @property
    def target(self) -> Path:
        """Where the rendition goes."""
        name = f"{self.stem}__{self.spec.name}{self.spec.suffix}"
        return Path(self.output) / self.folder / name


class Rendition(BaseModel):
    """A rendition that was written.

    Distances are numbers of differing bits of the 64-bit difference hash: to the source, and to
    the source in the same geometry. Only the second tells how far encoding and watermark moved the
    picture; the first mostly tells what the crop did.
    """

    account: str
    source: str
    spec: str
    path: str
    source_sha256: str
    sha256: str
    width: int
    height: int
    bytes: int
    distance_to_source: int
    distance_to_geometry: int


class MediaUniqTaskRunner(BaseTaskRunner[MediaUniqStart, MediaUniqItem]):
    """Makes renditions in threads; what no account changes is worked out once per source."""

    task_type = "media_uniq"
    start_model = MediaUniqStart
    item_model = MediaUniqItem
    per_worker: ClassVar[int | None] = os.cpu_count() or 1

    def __init__(self) -> None:
        self._prepared: SharedCache[_rendition.Prepared] = SharedCache(CACHE_BYTES)
        self._overlays: SharedCache[Image.Image] = SharedCache(CACHE_BYTES // 8)

    def expand(self, ctx: Context, start: MediaUniqStart) -> Iterator[MediaUniqItem]:
        """All accounts of the first source, then of the next: neighbours share a decoded source.

        Everything is checked before the first item: raises ValidationError with a problem per
        unreadable source and for an output folder that cannot be written.
        """
        problems: list[Problem] = []
        sources = _find_sources(start.sources, problems)
        _check_watermark(start, problems)
        _check_output(Path(start.output), problems)
        if not problems:
            _try_output(Path(start.output), _mark(ctx.job, ctx.lease), problems)
        if problems:
            raise ValidationError("the renditions cannot be made", problems)
        folders = safe_names({account: account for account in start.accounts})
        stems = safe_names({source: Path(source).stem for source in sources})
        return (
            MediaUniqItem(
                account=account,
                source=source,
                output=start.output,
                folder=folders[account],
                stem=stems[source],
                spec=start.platform_spec,
                watermark=start.watermark,
            )
            for source in sources
            for account in start.accounts
        )

    def run_item(self, ctx: Context, item: MediaUniqItem) -> Rendition:
        """Make one rendition and write it; the same item gives the same bytes again.

        Raises a PictureError for a source that is no good, SourceError or OutputError for files
        that cannot be read or written just now.
        """
        ctx.check()
        prepared = self._prepare(item)
        ctx.check()
        # Also where nothing is stamped: Pillow's save keeps its options in the image meanwhile.
        image = prepared.image.copy()
        self._stamp(image, item)
        data = _rendition.encode(image, item.spec.format, item.spec.quality)
        seen = _rendition.hash_of(data)
        ctx.check()
        _write(item.target, data, ctx)
        return Rendition(
            account=item.account,
            source=item.source,
            spec=item.spec.name,
            path=str(item.target),
            source_sha256=prepared.sha256,
            sha256=sha256(data).hexdigest(),
            width=image.width,
            height=image.height,
            bytes=len(data),
            distance_to_source=_rendition.distance(prepared.source_hash, seen),
            distance_to_geometry=_rendition.distance(prepared.geometry_hash, seen),
        )

    async def finish(
        self, ctx: Context, start: MediaUniqStart, finished: BatchFinished
    ) -> dict[str, Any]:
        """Write the manifest: one row per item, in their order, failed ones with their error.

        Raises OutputError.
        """
        folder = Path(start.output)
        with _output(folder):
            async with ManifestWriter(folder, _mark(ctx.job, ctx.lease)) as manifest:
                page: list[Job] = []
                async for job in ctx.items(finished.batch_id):
                    page.append(job)
                    if len(page) == _PAGE:
                        await _settle(manifest, page)
                        page = []
                await _settle(manifest, page)
        return {
            "manifest": str(manifest.path),
            "rows": manifest.rows,
            "failed": manifest.failed,
        }

    def _prepare(self, item: MediaUniqItem) -> _rendition.Prepared:
        spec = item.spec

        def make() -> _rendition.Prepared:
            data = _read(item.source)
            with _picture(item.source):
                return _rendition.prepare(
                    data, spec.width, spec.height, fit=spec.fit, background=spec.background
                )

        key = (*_version(item.source), spec.width, spec.height, spec.fit, spec.background)
        return self._prepared.get(key, make, lambda prepared: prepared.weight)

    def _stamp(self, image: Image.Image, item: MediaUniqItem) -> None:
        mark = item.watermark
        if isinstance(mark, TextWatermark):
            options = mark.model_dump(exclude={"text"})
            with _source(mark.font or "the font"):
                text = mark.text.replace("{account}", item.account)
                _rendition.stamp_text(image, text, **options)
        elif isinstance(mark, ImageWatermark):
            overlay = self._overlay(mark, image.width, image.height)
            _rendition.stamp_image(image, overlay, corner=mark.corner, margin=mark.margin)

    def _overlay(self, mark: ImageWatermark, width: int, height: int) -> Image.Image:
        edge = 2 * round(mark.margin * min(width, height))
        room = (min(round(mark.size * width), width - edge), height - edge)

        def make() -> Image.Image:
            data = _read(mark.image)
            with _picture(mark.image):
                return _rendition.open_overlay(data, *room, opacity=mark.opacity)

        key = (*_version(mark.image), *room, mark.opacity)
        return self._overlays.get(key, make, lambda image: 4 * image.width * image.height)


def _find_sources(given: list[str], problems: list[Problem]) -> list[str]:
    """The pictures meant, each once, in their order; what is missing is added to `problems`."""
    found: dict[str, None] = {}
    for number, path in enumerate(given):
        field = f"sources.{number}"
        try:
            pictures = _pictures_in(Path(path)) if Path(path).is_dir() else [path]
        except OSError as error:
            problems.append(Problem(field, _cannot("read", path, error)))
            continue
        if not pictures:
            problems.append(Problem(field, f"no picture is in {path}"))
        faults = (_read_fault(picture) for picture in pictures if picture not in found)
        problems.extend(Problem(field, fault) for fault in faults if fault)
        found.update(dict.fromkeys(pictures))
    return list(found)


def _pictures_in(folder: Path) -> list[str]:
    return sorted(
        str(path)
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def _read_fault(path: str) -> str | None:
    try:
        path.encode()
        with open_plain(path) as file:
            file.read(1)
    except UnicodeEncodeError:
        return f"{path!r}: the file's name is not UTF-8 text"
    except OSError as error:
        return _cannot("read", path, error)
    return None


def _check_watermark(start: MediaUniqStart, problems: list[Problem]) -> None:
    mark = start.watermark
    try:
        if isinstance(mark, ImageWatermark):
            with _picture(mark.image):
                _rendition.open_overlay(_read(mark.image), 1, 1, opacity=mark.opacity)
        elif mark is not None:
            text = mark.text.replace("{account}", "".join(start.accounts))
            missing = _rendition.missing_glyphs(text, mark.font)
            if missing:
                reason = f"the font has no {missing[:20]!r}; name one that has them"
                problems.append(Problem("watermark.font", reason))
    except (PictureError, SourceError) as error:
        problems.append(Problem("watermark.image", str(error)))
    except OSError as error:
        problems.append(Problem("watermark.font", f"cannot be used: {error.strerror or error}"))


def _check_output(output: Path, problems: list[Problem]) -> None:
    """Whether the folder could be made, without making it: another problem may forbid the start."""
    nearest = next(path for path in (output, *output.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        problems.append(Problem("output", f"{nearest} is not a folder"))
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problems.append(Problem("output", f"{nearest} cannot be written in"))


def _try_output(output: Path, mark: str, problems: list[Problem]) -> None:
    probe = output / f".{mark}.part"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        problems.append(Problem("output", _cannot("written", output, error)))


def _mark(job: Job, lease: int) -> str:
    """What makes a temporary name one attempt's own, and yet known to later attempts."""
    return f"{job.id}-{lease}"


def _write(target: Path, data: bytes, ctx: Context) -> None:
    folder = target.parent
    with _output(target):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        # Swept first: on a full disk that may be the space which is missing.
        _sweep(folder, ctx.job, ctx.lease)
        with replacing(target, folder / f".{_mark(ctx.job, ctx.lease)}.part") as file:
            file.write(data)


def _sweep(folder: Path, job: Job, below: int) -> None:
    """Remove what attempts that were killed have left.

    An attempt that was taken away but still runs loses its draft: it must not finish any more.
    """
    for lease in range(1, below):
        (folder / f".{_mark(job, lease)}.part").unlink(missing_ok=True)


async def _settle(manifest: ManifestWriter, jobs: list[Job]) -> None:
    await manifest.add(jobs)
    await asyncio.to_thread(_sweep_unfinished, jobs)


def _sweep_unfinished(jobs: list[Job]) -> None:
    for job in jobs:
        if job.state is not JobState.COMPLETED and job.lease:
            item = MediaUniqItem.model_validate_json(job.payload)
            _sweep(item.target.parent, job, job.lease + 1)


def _version(path: str) -> tuple[str, int, int]:
    """What changes when a file is replaced."""
    with _source(path):
        status = Path(path).stat()
    return path, status.st_mtime_ns, status.st_size


def _read(path: str) -> bytes:
    with _source(path), open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_SOURCE:
            raise UnsupportedPictureError(f"{path} is larger than {MAX_SOURCE:,} bytes")
        return file.read(MAX_SOURCE)


def _cannot(be: str, path: str | Path, error: OSError) -> str:
    return f"{path} cannot be {be}: {error.strerror or error}"


@contextmanager
def _source(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(_cannot("read", path, error)) from error


@contextmanager
def _output(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(_cannot("written", path, error)) from error


@contextmanager
def _picture(path: str) -> Iterator[None]:
    try:
        yield
    except _rendition.BadPictureError as error:
        if error.damaged:
            raise CorruptPictureError(f"the picture {path} is damaged: {error}") from error
        raise UnsupportedPictureError(f"{path} cannot be used: {error}") from error
