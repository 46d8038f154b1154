"""What platforms want of a picture, as data, and what may be laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from haulier.runners.csv_input import account_fault


def _absolute(path: str) -> str:
    # Done where the job is enqueued: the worker may run in another folder.
    if "\0" in path:
        raise ValueError("a path holds no NUL character")
    return str(Path(path).absolute())


FilePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_absolute)]
Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]


class PlatformSpec(BaseModel):
    """What a platform wants: size in pixels, how to get there, and the encoding.

    `crop` fills the size and cuts what stands out, `pad` shows all and fills the rest with
    `background`, which also shows through transparent places. `quality` (1 to 95) is the
    encoder's; PNG has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(max_length=40, pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]
    width: int = Field(ge=16, le=8192)
    height: int = Field(ge=16, le=8192)
    fit: Literal["crop", "pad"] = "crop"
    format: Literal["jpeg", "webp", "png"] = "jpeg"
    quality: int = Field(default=85, ge=1, le=95)
    background: Colour = "#ffffff"

    @property
    def suffix(self) -> str:
        """The ending of the file's name."""
        return ".jpg" if self.format == "jpeg" else f".{self.format}"


SPECS = {
    spec.name: spec
    for spec in (
        PlatformSpec(name="square", width=1080, height=1080),
        PlatformSpec(name="portrait", width=1080, height=1350),
        PlatformSpec(name="story", width=1080, height=1920, fit="pad", background="#101010"),
        PlatformSpec(name="landscape", width=1920, height=1080),
        PlatformSpec(name="link", width=1200, height=630),
        PlatformSpec(name="banner", width=1500, height=500),
        PlatformSpec(name="avatar", width=400, height=400, quality=90),
        PlatformSpec(name="thumb", width=320, height=320, format="webp", quality=75),
    )
}
"""The specs that a start payload can name. Others are given whole."""


class TextWatermark(BaseModel):
    """A line of text in a corner; `{account}` stands for the account's name.

    `margin` and `size` (height of the letters) are shares of the picture's shorter side. `font` is
    a TrueType or OpenType file; the default one has the characters of English and a few signs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(min_length=1, max_length=200)
    corner: Corner = "bottom-right"
    margin: float = Field(default=0.03, ge=0, le=0.4)
    size: float = Field(default=0.04, ge=0.01, le=0.5)
    opacity: float = Field(default=0.6, gt=0, le=1)
    colour: Colour = "#ffffff"
    font: FilePath | None = None

    @field_validator("text")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if fault := account_fault(text):
            raise ValueError(fault)
        return text


class ImageWatermark(BaseModel):
    """A picture, mostly a PNG with transparency, in a corner.

    `margin` is a share of the shorter side, `size` the watermark's share of the picture's width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: FilePath
    corner: Corner = "bottom-right"
    margin: float = Field(default=0.03, ge=0, le=0.4)
    size: float = Field(default=0.2, ge=0.01, le=1)
    opacity: float = Field(default=0.6, gt=0, le=1)
