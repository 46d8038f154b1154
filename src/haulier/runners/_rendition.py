"""What is done to pixels: decode, orient, fit, stamp, encode, and tell how far two pictures are.

Everything works on plain values and bytes; files, jobs and names are the caller's. Pillow lets
other threads run while it decodes, resizes and hashes, so these functions are made for threads.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Literal

from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad"]
Format = Literal["jpeg", "webp", "png"]
Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]

# Named one by one, because Pillow's other decoders start programs (EPS) or are rarely looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")

LANCZOS = Image.Resampling.LANCZOS

_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    SystemError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)
"""What Pillow's decoders raise for damaged bytes."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32, tag 0x0112: what brings a picture upright."""

_PROFILE_SPACE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


class BadPictureError(Exception):
    """These bytes are no picture that can be worked on; `damaged` tells broken from foreign."""

    def __init__(self, reason: str, *, damaged: bool) -> None:
        self.damaged = damaged
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source in its target geometry, and what is known of the source. Shared: never change it."""

    image: Image.Image
    sha256: str
    source_hash: int
    geometry_hash: int

    @property
    def weight(self) -> int:
        """Bytes of its pixels: Pillow keeps four for each RGB one."""
        return 4 * self.image.width * self.image.height


def prepare(data: bytes, width: int, height: int, *, fit: Fit, background: str) -> Prepared:
    """A source picture brought upright, into sRGB, and cropped or padded to width x height pixels.

    `background` (#rrggbb) fills what padding adds and shows through transparent places. Of an
    animation the first frame is taken. Raises BadPictureError.
    """
    upright = _upright(data, background, 2 * max(width, height))
    if fit == "crop":
        image = ImageOps.fit(upright, (width, height), LANCZOS)
    else:
        image = ImageOps.pad(upright, (width, height), LANCZOS, color=background)
    return Prepared(image, sha256(data).hexdigest(), dhash(upright), dhash(image))


def dhash(image: Image.Image) -> int:
    """The 64-bit difference hash: for 8 x 8 places, whether the picture gets brighter rightwards.

    Source: N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013-01-21. It withstands
    encoding and scaling, not cropping: compare only pictures of the same geometry.
    """
    grey = image.convert("L").resize((9, 8), LANCZOS, reducing_gap=3.0).tobytes()
    bits = 0
    for row in range(0, 72, 9):
        for left in range(row, row + 8):
            bits = bits << 1 | (grey[left] < grey[left + 1])
    return bits


def distance(one: int, other: int) -> int:
    """In how many of their 64 bits two hashes differ (Hamming distance)."""
    return (one ^ other).bit_count()


def hash_of(data: bytes) -> int:
    """The difference hash of an encoded picture that this module made."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # Of a JPEG only the brightness is decoded, which is all the hash looks at.
        image.draft("L", image.size)
        return dhash(image)


def encode(image: Image.Image, kind: Format, quality: int) -> bytes:
    """The picture's bytes, without any metadata. Not for an image that other threads may save.

    `quality` (1 to 95) is the encoder's own scale; PNG, being lossless, has none.
    """
    buffer = io.BytesIO()
    # Measured at 1080 x 1080: optimized tables cost a JPEG 75 % more time for 3 % fewer bytes, the
    # progressive form 270 %; WebP's default method doubles the time for 6 %, PNG's level triples
    # it for 2 %.
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    elif kind == "webp":
        image.save(buffer, "WEBP", quality=quality, method=2)
    else:
        image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def stamp_text(
    image: Image.Image,
    text: str,
    *,
    corner: Corner,
    margin: float,
    size: float,
    opacity: float,
    colour: str,
    font: str | None = None,
) -> None:
    """Draw a line of outlined text into a corner of the picture, in place.

    `margin` and `size` (height of the letters) are shares of the shorter side; a line that would
    be too long is made smaller. `font` is a TrueType or OpenType file, by default the one that
    Pillow brings along. Raises OSError for a font that cannot be read.
    """
    edge = round(margin * min(image.size))
    room = max(1, image.width - 2 * edge)
    pixels = max(6, round(size * min(image.size)))
    box = _text_box(font, pixels, text)
    if box[2] - box[0] > room:
        pixels = max(6, int(pixels * room / (box[2] - box[0])))
        box = _text_box(font, pixels, text)
    left, top = _place(image.size, (box[2] - box[0], box[3] - box[1]), corner, edge)
    # Only what lies under the text is touched: blending the whole picture costs ten times more.
    region = image.crop((left, top, left + box[2] - box[0], top + box[3] - box[1]))
    drawn = region.copy()
    ImageDraw.Draw(drawn).text(
        (-box[0], -box[1]),
        text,
        fill=colour,
        font=_face(font, pixels),
        stroke_width=_stroke(pixels),
        stroke_fill=_contrast(colour),
    )
    image.paste(Image.blend(region, drawn, opacity), (left, top))


def open_overlay(data: bytes, width: int, height: int, *, opacity: float) -> Image.Image:
    """A watermark picture, scaled to fit width x height pixels, its opacity applied.

    Raises BadPictureError.
    """
    image = _decoded(data)
    try:
        overlay = ImageOps.contain(image.convert("RGBA"), (max(1, width), max(1, height)), LANCZOS)
        overlay.putalpha(overlay.getchannel("A").point(lambda alpha: round(alpha * opacity)))
    except _FAULTS as error:
        raise BadPictureError(_reason(error), damaged=True) from error
    return overlay


def stamp_image(image: Image.Image, overlay: Image.Image, *, corner: Corner, margin: float) -> None:
    """Lay an overlay into a corner of the picture, in place; `margin` as in `stamp_text`."""
    edge = round(margin * min(image.size))
    image.paste(overlay, _place(image.size, overlay.size, corner, edge), overlay)


def missing_glyphs(text: str, font: str | None = None) -> str:
    """The characters of a text that a font lacks, each once. Raises OSError for what is no font.

    A font draws the same box for every character it lacks (glyph 0, ".notdef", of OpenType).
    """
    face = _face(font, 12)
    box = bytes(face.getmask("\uffff"))
    return "".join(
        character for character in sorted(set(text)) if bytes(face.getmask(character)) == box
    )


def _upright(data: bytes, background: str, wanted: int) -> Image.Image:
    """The picture as plain RGB without metadata, at least `wanted` pixels a side if it was."""
    image = _decoded(data, wanted)
    try:
        with suppress(*_FAULTS):
            # A damaged EXIF block is no reason to refuse pixels that are whole.
            turn = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            image = image.transpose(turn) if turn is not None else image
        profile = image.info.get("icc_profile")
        image = _to_srgb(_flat(image, background), profile)
    except _FAULTS as error:
        raise BadPictureError(_reason(error), damaged=False) from error
    # The encoders copy comments and profiles from here into what they write.
    image.info = {}
    return image


def _decoded(data: bytes, wanted: int | None = None) -> Image.Image:
    if not data:
        raise BadPictureError("it is empty", damaged=True)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.width, image.height)
        if wanted:
            # A JPEG much larger than its target is decoded at 1/2, 1/4 or 1/8, as libjpeg can.
            image.draft(None, (wanted, wanted))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPictureError(f"it has too many pixels: {error}", damaged=False) from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        reason = f"it is none of {known}, or its beginning is damaged"
        raise BadPictureError(reason, damaged=False) from error
    except _FAULTS as error:
        raise BadPictureError(_reason(error), damaged=True) from error
    return image


def _check_size(width: int, height: int) -> None:
    # Pillow itself only warns up to twice this number.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadPictureError(
            f"it has {width} x {height} pixels, at most {limit:,} are allowed", damaged=False
        )


def _flat(image: Image.Image, background: str) -> Image.Image:
    """Without transparency, in a mode that colour profiles know."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value * (1 / 256) + 0).convert("L")
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit grey has no agreed range of brightness")
    return image if image.mode in _PROFILE_SPACE else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        # A profile that is broken or made for other pixels is passed over, as viewers do.
        with suppress(*_FAULTS):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            fits = source.profile.xcolor_space.strip() == _PROFILE_SPACE[image.mode]
            named_srgb = ImageCms.getProfileDescription(source).startswith("sRGB")
            if fits and not named_srgb:
                converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
                assert converted is not None
                return converted
    return image.convert("RGB")


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=64)
def _face(font: str | None, pixels: int) -> ImageFont.FreeTypeFont:
    if font is not None:
        return ImageFont.truetype(font, pixels)
    face = ImageFont.load_default(pixels)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def _stroke(pixels: int) -> int:
    return max(1, pixels // 16)


def _text_box(font: str | None, pixels: int, text: str) -> tuple[int, int, int, int]:
    left, top, right, bottom = _face(font, pixels).getbbox(text, stroke_width=_stroke(pixels))
    return int(left), int(top), max(int(left) + 1, int(right)), max(int(top) + 1, int(bottom))


def _contrast(colour: str) -> str:
    """Black or white, whichever stands out from #rrggbb, by the brightness of ITU-R BT.601."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 299 * red + 587 * green + 114 * blue >= 128_000 else "#ffffff"


def _place(
    outer: tuple[int, int], inner: tuple[int, int], corner: Corner, edge: int
) -> tuple[int, int]:
    left = edge if corner.endswith("left") else outer[0] - inner[0] - edge
    top = edge if corner.startswith("top") else outer[1] - inner[1] - edge
    return max(0, left), max(0, top)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
