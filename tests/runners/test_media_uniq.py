"""Renditions of generated pictures and of real photographs."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFilter, ImageOps, PngImagePlugin
from pydantic import ValidationError as ModelError

from haulier.domain.job import JobError, JobState
from haulier.exceptions import CancelJob, PermanentError, ValidationError
from haulier.runners import _rendition
from haulier.runners._cache import SharedCache
from haulier.runners._files import replacing, safe_names
from haulier.runners.base import BatchFinished
from haulier.runners.media_spec import SPECS, PlatformSpec, TextWatermark
from haulier.runners.media_uniq import (
    CorruptPictureError,
    MediaUniqItem,
    MediaUniqStart,
    MediaUniqTaskRunner,
    OutputError,
    SourceError,
    UnsupportedPictureError,
)
from haulier.services.payload import encode_result

PHOTOS = Path(find_spec("skimage").submodule_search_locations[0]) / "data"
PHOTO_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "rocket.jpg")

SMALL = {"name": "small", "width": 120, "height": 90}


@pytest.fixture
def render(make_context, tmp_path):
    """Runs a whole start payload's items, one after the other."""
    runner = MediaUniqTaskRunner()

    def run(*sources, accounts=("ada",), spec=SMALL, watermark=None, output=tmp_path / "out"):
        start = MediaUniqStart(
            accounts=list(accounts),
            sources=[str(source) for source in sources],
            output=str(output),
            spec=spec,
            watermark=watermark,
        )
        items = list(runner.expand(make_context(), start))
        return [runner.run_item(make_context(payload=item), item) for item in items]

    return run


@pytest.fixture
def item(tmp_path):
    """An item over a picture that is there."""
    source = tmp_path / "source.png"
    scene().save(source)
    return MediaUniqItem(
        account="ada",
        source=str(source),
        output=str(tmp_path / "out"),
        folder="ada",
        stem="source",
        spec=PlatformSpec(**SMALL),
    )


def scene(size=(400, 300)):
    """A picture with four different corners and some structure."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, 0, width // 4, height // 4), fill="#ff0000")
    draw.rectangle((width * 3 // 4, 0, width, height // 4), fill="#00ff00")
    draw.rectangle((0, height * 3 // 4, width // 4, height), fill="#0000ff")
    draw.ellipse((width // 3, height // 3, width // 2, height // 2), fill="#808000")
    return image.filter(ImageFilter.GaussianBlur(1))


def exif_with_gps(orientation):
    exif = Image.Exif()
    exif[0x010F] = "SecretCam"
    exif[0x0112] = orientation
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (50.0, 1.0, 2.0)
    return exif


def hidden_files(folder):
    return [path for path in Path(folder).rglob("*") if path.name.startswith(".")]


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orientation", range(1, 9))
def test_brings_the_picture_upright(tmp_path, render, orientation):
    upright = scene()
    # What a camera held another way stores: the inverse of what brings it upright.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.copy()
    stored.getexif()[0x0112] = inverse
    stored = ImageOps.exif_transpose(stored)
    stored.save(tmp_path / "turned.png", exif=exif_with_gps(orientation))
    upright.save(tmp_path / "upright.png")

    turned, plain = render(tmp_path / "turned.png", tmp_path / "upright.png")

    assert Path(turned.path).read_bytes() == Path(plain.path).read_bytes()


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_no_metadata_survives(tmp_path, render, kind):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "SecretCam was here")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta>SecretCam</x:xmpmeta>"
    exif = exif_with_gps(6)
    scene().save(tmp_path / "a.jpg", exif=exif, comment="SecretCam", icc_profile=profile, xmp=xmp)
    scene().save(tmp_path / "b.png", exif=exif, pnginfo=text, icc_profile=profile, dpi=(72, 72))
    scene().save(tmp_path / "c.webp", exif=exif, icc_profile=profile, xmp=xmp)

    made = render(
        tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "c.webp", spec=SMALL | {"format": kind}
    )

    for rendition in made:
        data = Path(rendition.path).read_bytes()
        assert b"SecretCam" not in data
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert not image.getexif()
            assert not {"exif", "icc_profile", "xmp", "comment", "Comment"} & set(image.info)


@pytest.mark.parametrize("name", SPECS)
def test_every_named_spec_gives_its_size_and_format(render, name):
    (made,) = render(PHOTOS / "chelsea.png", spec=name)

    spec = SPECS[name]
    with Image.open(made.path) as image:
        assert (image.width, image.height) == (made.width, made.height) == (spec.width, spec.height)
        assert image.format == spec.format.upper()
        assert image.mode == "RGB"
    assert Path(made.path).name == f"chelsea__{name}{spec.suffix}"
    assert made.bytes == Path(made.path).stat().st_size
    assert made.sha256 == sha256(Path(made.path).read_bytes()).hexdigest()
    assert made.source_sha256 == sha256((PHOTOS / "chelsea.png").read_bytes()).hexdigest()


def test_crop_fills_and_pad_shows_all(tmp_path, render):
    image = Image.new("RGB", (300, 100), "#ff0000")
    image.paste("#0000ff", (0, 0, 50, 100))
    image.save(tmp_path / "wide.png")
    spec = {"name": "s", "width": 100, "height": 100, "format": "png", "background": "#00ff00"}

    (cropped,) = render(tmp_path / "wide.png", spec=spec | {"fit": "crop", "name": "crop"})
    (padded,) = render(tmp_path / "wide.png", spec=spec | {"fit": "pad", "name": "pad"})

    assert Image.open(cropped.path).getcolors() == [(10_000, (255, 0, 0))]
    with Image.open(padded.path) as image:
        assert [image.getpixel(at) for at in ((50, 5), (50, 95), (5, 50), (90, 50))] == [
            (0, 255, 0),
            (0, 255, 0),
            (0, 0, 255),
            (255, 0, 0),
        ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_usual_mode_becomes_rgb(tmp_path, render, mode):
    value = 255 if mode == "1" else 200
    grey = Image.new("L", (64, 64), value)
    image = Image.new(mode, (64, 64), value * 256) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("picture.tif" if mode in {"CMYK", "YCbCr"} else "picture.png")
    image.save(path)

    (made,) = render(path, spec=SMALL | {"format": "png"})

    with Image.open(made.path) as result:
        assert all(abs(channel - value) <= 2 for channel in result.getpixel((50, 50)))


def test_transparent_places_show_the_background(tmp_path, render):
    Image.new("RGBA", (50, 50), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    (made,) = render(
        tmp_path / "clear.png", spec=SMALL | {"format": "png", "background": "#123456"}
    )
    assert Image.open(made.path).getpixel((10, 10)) == (0x12, 0x34, 0x56)


def test_colours_of_another_profile_are_converted(render):
    # rocket.jpg carries Adobe RGB (1998), whose numbers mean paler colours when taken for sRGB.
    (made,) = render(PHOTOS / "rocket.jpg", spec=SMALL | {"format": "png"})

    with Image.open(PHOTOS / "rocket.jpg") as photo:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))
        srgb = ImageCms.createProfile("sRGB")
        wanted = ImageCms.profileToProfile(photo, profile, srgb, outputMode="RGB")
        naive = photo.convert("RGB")
    wanted, naive = (
        ImageOps.fit(image, (120, 90), Image.Resampling.LANCZOS) for image in (wanted, naive)
    )
    with Image.open(made.path) as image:
        assert image.tobytes() == wanted.tobytes() != naive.tobytes()


def test_a_broken_profile_is_passed_over(tmp_path, render):
    scene().save(tmp_path / "odd.png", icc_profile=b"no profile at all" * 20)
    scene().save(tmp_path / "plain.png")
    odd, plain = render(tmp_path / "odd.png", tmp_path / "plain.png")
    assert odd.sha256 == plain.sha256


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(tmp_path, render):
    scene((2400, 1800)).save(tmp_path / "large.jpg", quality=95)
    scene((2400, 1800)).save(tmp_path / "large.png")

    jpeg, png = render(tmp_path / "large.jpg", tmp_path / "large.png")

    one, other = (_rendition.hash_of(Path(made.path).read_bytes()) for made in (jpeg, png))
    assert _rendition.distance(one, other) <= 3


# ── Distances ────────────────────────────────────────────────────────────────────────────────


def test_the_hash_says_where_it_gets_brighter_rightwards():
    ramp = Image.linear_gradient("L").rotate(90).resize((90, 80))
    assert _rendition.dhash(ramp) == 2**64 - 1
    assert _rendition.dhash(ImageOps.mirror(ramp)) == 0
    assert _rendition.distance(0b1011, 0b0001) == 2


@pytest.mark.parametrize("name", PHOTO_NAMES)
@pytest.mark.parametrize("spec", ["square", "story", "link"])
def test_encoding_and_watermark_move_a_photograph_little(render, name, spec):
    (made,) = render(PHOTOS / name, spec=spec, watermark={"text": "© {account}"})
    assert made.distance_to_geometry <= 6


def test_a_crop_moves_a_photograph_far_and_only_the_first_distance_tells(render):
    made = render(*(PHOTOS / name for name in PHOTO_NAMES), spec="banner")
    # The sky of rocket.jpg looks much the same wherever it is cut.
    assert sorted(rendition.distance_to_source for rendition in made)[1] >= 15
    assert all(rendition.distance_to_geometry <= 6 for rendition in made)


def test_without_a_change_of_geometry_both_distances_are_small(render):
    spec = {"name": "same", "width": 600, "height": 400, "quality": 60}
    (made,) = render(PHOTOS / "coffee.png", spec=spec)
    assert made.distance_to_source <= 3
    assert made.distance_to_geometry <= 3


# ── Watermarks ───────────────────────────────────────────────────────────────────────────────


def changed_box(plain, marked):
    """Where two PNG renditions differ."""
    from PIL import ImageChops

    with Image.open(plain.path) as one, Image.open(marked.path) as other:
        return ImageChops.difference(one, other).getbbox()


@pytest.mark.parametrize(
    ("corner", "left", "top"),
    [
        ("top-left", True, True),
        ("top-right", False, True),
        ("bottom-left", True, False),
        ("bottom-right", False, False),
    ],
)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_watermark_lies_in_its_corner_within_the_margin(
    tmp_path, render, kind, corner, left, top
):
    Image.new("RGBA", (40, 20), (255, 0, 255, 255)).save(tmp_path / "logo.png")
    mark = {"text": "{account}"} if kind == "text" else {"image": str(tmp_path / "logo.png")}
    spec = {"name": "s", "width": 400, "height": 300, "format": "png"}
    Image.new("RGB", (400, 300), "#336699").save(tmp_path / "p.png")

    (plain,) = render(tmp_path / "p.png", spec=spec | {"name": "plain"})
    (marked,) = render(
        tmp_path / "p.png", spec=spec, watermark=mark | {"corner": corner, "margin": 0.05}
    )

    box = changed_box(plain, marked)
    assert box[0] >= 15 if left else box[2] <= 385
    assert box[1] >= 15 if top else box[3] <= 285
    assert (box[2] < 250) if left else (box[0] > 150)
    assert (box[3] < 150) if top else (box[1] > 150)
    if kind == "image":
        assert (box[2] - box[0], box[3] - box[1]) == (80, 40)


def test_opacity_mixes_the_watermark_with_the_picture(tmp_path, render):
    Image.new("RGB", (40, 40), "#ffffff").save(tmp_path / "logo.png")
    Image.new("RGB", (100, 100), "#000000").save(tmp_path / "p.png")
    spec = {"name": "s", "width": 100, "height": 100, "format": "png"}
    mark = {"image": str(tmp_path / "logo.png"), "opacity": 0.5, "margin": 0, "corner": "top-left"}

    (made,) = render(tmp_path / "p.png", spec=spec, watermark=mark)

    assert Image.open(made.path).getpixel((5, 5)) == (128, 128, 128)
    assert Image.open(made.path).getpixel((50, 50)) == (0, 0, 0)


def test_the_account_makes_the_watermark_and_nothing_else_differ(render):
    named = render(PHOTOS / "coffee.png", accounts=["ada", "bob"], watermark={"text": "@{account}"})
    same = render(PHOTOS / "coffee.png", accounts=["ada", "bob"], watermark={"text": "shop"})

    assert named[0].sha256 != named[1].sha256
    assert same[0].sha256 == same[1].sha256
    assert len({rendition.path for rendition in named}) == 2


@pytest.mark.parametrize("text", ["i", "x" * 200, "{account}" * 20, "{", "{0.__class__}", " . "])
def test_any_line_fits_on_any_picture(tmp_path, render, text):
    (made,) = render(
        PHOTOS / "chelsea.png",
        spec={"name": "tiny", "width": 16, "height": 16},
        watermark={"text": text, "size": 0.5, "margin": 0.4},
    )
    assert (made.width, made.height) == (16, 16)


def test_characters_that_the_font_lacks_are_told_at_the_start(tmp_path, render):
    with pytest.raises(ValidationError, match="has no '日本'"):
        render(PHOTOS / "coffee.png", accounts=["ada", "日本"], watermark={"text": "{account}"})
    assert render(PHOTOS / "coffee.png", accounts=["日本"], watermark={"text": "shop"})
    (tmp_path / "no.ttf").write_bytes(b"no font")
    with pytest.raises(ValidationError, match=r"watermark\.font: cannot be used"):
        render(PHOTOS / "coffee.png", watermark={"text": "x", "font": str(tmp_path / "no.ttf")})


# ── Bad pictures ─────────────────────────────────────────────────────────────────────────────


def run_on(item, make_context, data):
    Path(item.source).write_bytes(data)
    MediaUniqTaskRunner().run_item(make_context(), item)


def test_damaged_and_foreign_files_fail_for_good_and_are_named(make_context, item):
    photo = (PHOTOS / "rocket.jpg").read_bytes()
    png = (PHOTOS / "coffee.png").read_bytes()
    cases = [
        (b"", CorruptPictureError, "empty"),
        (photo[: len(photo) // 2], CorruptPictureError, "truncated"),
        (png[:2000], CorruptPictureError, "damaged"),
        (b"just some text\n", UnsupportedPictureError, "none of JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UnsupportedPictureError, "none of"),
        (photo[1000:], UnsupportedPictureError, "none of JPEG"),
    ]
    for data, error, reason in cases:
        with pytest.raises(error, match=reason) as caught:
            run_on(item, make_context, data)
        assert issubclass(error, PermanentError)
        assert item.source in str(caught.value)
    assert not Path(item.output).exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [11_000_000, 5_000_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    make_context, item, monkeypatch, limit
):
    Image.new("1", (4000, 3000)).save(item.source)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnsupportedPictureError, match="pixels"):
        MediaUniqTaskRunner().run_item(make_context(), item)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_whatever_bytes_are_flipped_only_the_picture_is_blamed(kind):
    dice = random.Random(kind)
    buffer = io.BytesIO()
    scene((48, 36)).save(buffer, kind, **({"exif": exif_with_gps(3)} if kind != "BMP" else {}))
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        del data[dice.choice([len(data), dice.randrange(len(data))]) :]
        try:
            made = _rendition.prepare(bytes(data), 32, 32, fit="crop", background="#ffffff")
        except _rendition.BadPictureError:
            continue
        assert made.image.size == (32, 32)


def test_a_corrupt_picture_fails_only_its_own_items(tmp_path, make_context):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    scene().save(good)
    bad.write_bytes(good.read_bytes()[:300])
    runner = MediaUniqTaskRunner()
    start = MediaUniqStart(
        accounts=["ada", "bob"], sources=[str(bad), str(good)], output=str(tmp_path / "out")
    )
    fates = []
    for each in runner.expand(make_context(), start):
        try:
            fates.append(Path(runner.run_item(make_context(), each).path).exists())
        except CorruptPictureError:
            fates.append("corrupt")
    assert fates == ["corrupt", "corrupt", True, True]


# ── The start ────────────────────────────────────────────────────────────────────────────────


def expand(make_context, **start):
    values = {"accounts": ["ada"], "sources": [str(PHOTOS / "coffee.png")]} | start
    return list(MediaUniqTaskRunner().expand(make_context(), MediaUniqStart(**values)))


def test_every_missing_source_is_named_and_nothing_is_made(tmp_path, make_context):
    (tmp_path / "empty").mkdir()
    sources = [str(tmp_path / name) for name in ("no1.png", "empty", "no2.png")]
    with pytest.raises(ValidationError) as caught:
        expand(
            make_context,
            sources=[*sources, str(PHOTOS / "coffee.png"), "/dev/null"],
            output=str(tmp_path / "out"),
            watermark={"image": str(tmp_path / "no3.png")},
        )
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["sources.0", "sources.1", "sources.2", "sources.4", "watermark.image"]
    assert all(name in str(caught.value) for name in ("no1.png", "no2.png", "no3.png", "empty"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inner", ["", "deeper/down"])
def test_an_output_that_is_no_folder_is_refused(tmp_path, make_context, inner):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValidationError) as caught:
        expand(make_context, output=str(tmp_path / "file" / inner))
    assert [problem.field for problem in caught.value.problems] == ["output"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission_is_refused(tmp_path, make_context):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ValidationError, match="cannot be written"):
        expand(make_context, output=str(tmp_path / "locked" / "out"))


def test_the_checks_leave_nothing_in_the_output(tmp_path, make_context):
    expand(make_context, output=str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_stands_for_its_pictures_and_each_is_taken_once(tmp_path, make_context):
    folder = tmp_path / "in"
    (folder / "sub.png").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    items = expand(
        make_context,
        accounts=["ada", "bob"],
        sources=[str(folder / "b.PNG"), str(folder)],
        output=str(tmp_path / "out"),
    )
    assert [(Path(each.source).name, each.account) for each in items] == [
        (name, account) for name in ("b.PNG", "a.jpg", "c.webp") for account in ("ada", "bob")
    ]


def test_expanding_twice_gives_the_same_items(tmp_path, make_context):
    start = {"accounts": ["b", "a", "c"], "sources": [str(PHOTOS)], "output": str(tmp_path)}
    assert expand(make_context, **start) == expand(make_context, **start)


def test_same_names_do_not_overwrite_each_other(tmp_path, render):
    paths = [tmp_path / "a" / "pic.png", tmp_path / "b" / "pic.png", tmp_path / "b" / "PIC.jpg"]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 60), (80 * number, 0, 0)).save(path)

    made = render(*paths, accounts=["x/y", "x:y", "X_y", "x_y"])

    assert len({rendition.path.casefold() for rendition in made}) == 12
    assert all(Path(rendition.path).exists() for rendition in made)
    assert len({rendition.sha256 for rendition in made}) == 3


@pytest.mark.parametrize(
    "account", ["..", ".", "../../etc/x", "/etc/passwd", "a\\..\\b", ".ssh", "~", "a" * 200, "CON:"]
)
def test_no_account_name_leads_out_of_the_output(tmp_path, render, account):
    (made,) = render(PHOTOS / "coffee.png", accounts=[account])
    relative = Path(made.path).resolve().relative_to((tmp_path / "out").resolve())
    assert len(relative.parts) == 2
    assert not relative.parts[0].startswith(".")


@given(st.lists(st.text(min_size=1, max_size=300), unique=True, max_size=30))
def test_safe_names_are_different_and_safe(keys):
    names = safe_names({key: key for key in keys})
    folded = [name.casefold() for name in names.values()]
    assert len(set(folded)) == len(keys)
    for name in names.values():
        assert len(name.encode()) <= 200
        assert not set(name) & set("/\\\0\n")
        assert name[0] not in ". "
    assert safe_names({key: key for key in reversed(keys)}) == names


def test_plain_names_are_kept():
    plain = ["ada", "Bob.Smith", "user_1@example.org", "żółć", "my photo (2)"]
    assert safe_names({name: name for name in plain}) == {name: name for name in plain}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accounts", []),
        ("accounts", ["ada", "ada"]),
        ("accounts", ["ada", " "]),
        ("accounts", ["a\nb"]),
        ("accounts", ["a" * 201]),
        ("sources", []),
        ("sources", ["a\0b"]),
        ("output", ""),
        ("spec", "sqare"),
        ("spec", SMALL | {"width": 0}),
        ("spec", SMALL | {"name": "../x"}),
        ("spec", SMALL | {"background": "red; drop"}),
        ("watermark", {"text": "two\nlines"}),
        ("watermark", {"text": "x", "image": "y"}),
        ("watermark", {"text": "x", "opacity": 0}),
        ("extra", 1),
    ],
)
def test_the_start_payload_refuses(field, value):
    values = {"accounts": ["ada"], "sources": ["a.png"], "output": "out"} | {field: value}
    with pytest.raises(ModelError) as caught:
        MediaUniqStart(**values)
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_relative_paths_are_those_of_the_one_who_enqueues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = MediaUniqStart(accounts=["ada"], sources=["in/a.png"], output="out")
    monkeypatch.chdir("/")
    assert start.sources == [str(tmp_path / "in/a.png")]
    assert MediaUniqStart.model_validate_json(start.model_dump_json()) == start


# ── Writing ──────────────────────────────────────────────────────────────────────────────────


def test_the_same_item_gives_the_same_result_also_in_threads(make_context, item):
    item = item.model_copy(update={"watermark": TextWatermark(text="© {account}")})
    runner = MediaUniqTaskRunner()
    first = runner.run_item(make_context(), item)
    data = Path(first.path).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: runner.run_item(make_context(), item), range(24)))
    fresh = MediaUniqTaskRunner().run_item(make_context(), item)

    assert all(result == first for result in (*again, fresh))
    assert Path(first.path).read_bytes() == data
    assert hidden_files(item.output) == []


def test_a_source_that_changed_is_read_anew(make_context, item):
    runner = MediaUniqTaskRunner()
    first = runner.run_item(make_context(), item)
    Image.new("RGB", (50, 50), "#ff00ff").save(item.source)
    second = runner.run_item(make_context(), item)
    assert first.source_sha256 != second.source_sha256
    assert first.sha256 != second.sha256


def test_a_file_in_the_way_can_be_tried_again(make_context, item):
    Path(item.output).write_text("in the way")
    runner = MediaUniqTaskRunner()
    with pytest.raises(OutputError, match="cannot be written") as caught:
        runner.run_item(make_context(), item)
    assert not isinstance(caught.value, PermanentError)

    Path(item.output).unlink()
    item.target.mkdir(parents=True)
    with pytest.raises(OutputError):
        runner.run_item(make_context(), item)
    assert hidden_files(item.output) == []


def test_a_source_that_vanished_can_be_tried_again(make_context, item):
    Path(item.source).unlink()
    with pytest.raises(SourceError) as caught:
        MediaUniqTaskRunner().run_item(make_context(), item)
    assert not isinstance(caught.value, PermanentError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_output_error_and_the_old_rendition_stays(make_context, item):
    context = make_context()
    runner = MediaUniqTaskRunner()
    made = runner.run_item(context, item)
    old = Path(made.path).read_bytes()
    scene((200, 200)).save(item.source)
    # The draft's name is known, so it can lead to a device that is always full.
    (item.target.parent / f".{context.job.id}-{context.lease}.part").symlink_to("/dev/full")

    with pytest.raises(OutputError, match="No space left"):
        runner.run_item(context, item)

    assert item.target.read_bytes() == old
    assert hidden_files(item.output) == []


def test_a_killed_writer_leaves_the_old_file_and_a_draft_that_the_next_attempt_removes(
    make_context, item, tmp_path
):
    context = make_context(lease=2)
    target = item.target
    target.parent.mkdir(parents=True)
    target.write_bytes(b"the old one")
    draft = target.parent / f".{context.job.id}-1.part"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from haulier.runners._files import replacing\n"
        "with replacing(Path(sys.argv[1]), Path(sys.argv[2])) as file:\n"
        "    file.write(b'half of it'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, target, draft], check=False)

    assert killed.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"the old one"
    assert draft.read_bytes() == b"half of it"
    MediaUniqTaskRunner().run_item(context, item)
    with Image.open(target) as image:
        image.load()
    assert hidden_files(item.output) == []


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write_half():
        with replacing(target, tmp_path / ".draft") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class CancelledAfter:
    """The switches of a job that is cancelled while it runs: after so many looks at them."""

    lost = False
    late = None

    def __init__(self, looks):
        self.looks = looks

    @property
    def cancelled(self):
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_an_item_cancelled_at_any_step_writes_nothing(make_context, item, looks):
    context = make_context()
    context._control = CancelledAfter(looks)
    with pytest.raises(CancelJob):
        MediaUniqTaskRunner().run_item(context, item)
    assert not Path(item.output).exists()


@pytest.mark.parametrize("field", ["folder", "stem"])
@pytest.mark.parametrize("value", ["..", "../x", "/x", "a/b", ".x", "a\\b", "", "a\0"])
def test_an_item_cannot_name_another_folder(item, field, value):
    with pytest.raises(ModelError):
        MediaUniqItem.model_validate(item.model_dump() | {field: value})


# ── The cache ────────────────────────────────────────────────────────────────────────────────


def test_threads_that_ask_for_the_same_wait_for_the_one_that_makes_it():
    cache = SharedCache(100)
    asked, made = threading.Barrier(4), []

    def ask(_):
        asked.wait()
        return cache.get("key", lambda: made.append(1) or object(), lambda _: 10)

    with ThreadPoolExecutor(4) as pool:
        values = set(pool.map(ask, range(4)))
    assert len(values) == len(made) == 1


def test_the_cache_forgets_what_was_used_longest_ago():
    cache = SharedCache(30)
    made = []

    def get(key, weight=10):
        return cache.get(key, lambda: made.append(key) or key, lambda _: weight)

    for key in ("a", "b", "c", "a", "d", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "d", "b"]
    assert cache.weight == 30
    assert get("huge", 1000) == "huge"
    assert cache.weight == 0


def test_the_cache_does_not_keep_failures():
    cache = SharedCache(30)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 // 0, lambda _: 1)
    assert cache.get("key", lambda: 7, lambda _: 1) == 7


# ── The manifest ─────────────────────────────────────────────────────────────────────────────


def settled(context, *, seq, state, batch_id, result=None, error=None):
    return context.job._replace(
        seq=seq,
        batch_id=batch_id,
        state=state,
        result=None if result is None else encode_result(result),
        error=error,
    )


def finish(make_context, items, output, batch_id="b"):
    start = MediaUniqStart(accounts=["ada"], sources=["in"], output=str(output))
    context = make_context(kind="media_uniq.finish", items=items)
    finished = BatchFinished(batch_id=batch_id, state=JobState.COMPLETED, counts={})
    return asyncio.run(MediaUniqTaskRunner().finish(context, start, finished)), context


def test_the_manifest_has_a_row_per_item_in_their_order(make_context, item):
    runner = MediaUniqTaskRunner()
    items, results = [], {}
    for seq in range(10, 16):
        each = item.model_copy(update={"account": f"user{seq}", "folder": f"user{seq}"})
        context = make_context(payload=each)
        if seq == 12:
            error = JobError(type="CorruptPictureError", message='=cmd|"x",\n@1')
            items.append(
                settled(context, seq=seq, state=JobState.FAILED, batch_id="b", error=error)
            )
        elif seq == 13:
            items.append(settled(context, seq=seq, state=JobState.CANCELLED, batch_id="b"))
        else:
            results[seq] = runner.run_item(context, each)
            items.append(
                settled(
                    context, seq=seq, state=JobState.COMPLETED, batch_id="b", result=results[seq]
                )
            )
    foreign = settled(make_context(payload=item), seq=99, state=JobState.FAILED, batch_id="other")

    result, _ = finish(make_context, [*reversed(items), foreign], item.output)

    path = Path(item.output) / "manifest.jsonl"
    assert result == {"manifest": str(path), "rows": 6, "failed": 1}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["account"] for row in rows] == [f"user{seq}" for seq in range(10, 16)]
    assert [row["state"] for row in rows] == [
        *("completed", "completed", "failed", "cancelled", "completed", "completed")
    ]
    for seq, row in zip(range(10, 16), rows, strict=True):
        if seq in results:
            assert row == results[seq].model_dump() | {
                "state": "completed",
                "error": None,
                "message": None,
            }
            assert sha256(Path(row["path"]).read_bytes()).hexdigest() == row["sha256"]
    assert rows[2]["error"] == "CorruptPictureError"
    assert rows[2]["path"] is rows[2]["sha256"] is rows[2]["bytes"] is None

    with path.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["account"] for row in table] == [row["account"] for row in rows]
    assert table[2]["message"] == '\'=cmd|"x",\n@1'
    assert table[2]["path"] == table[2]["width"] == ""
    assert table[0]["bytes"] == str(results[10].bytes)
    assert hidden_files(item.output) == []


@pytest.mark.parametrize("account", ["=1+1", "+1", "-1", "@x"])
def test_no_cell_of_the_csv_is_a_formula(make_context, item, account):
    each = item.model_copy(update={"account": account})
    job = settled(make_context(payload=each), seq=5, state=JobState.CANCELLED, batch_id="b")
    result, _ = finish(make_context, [job], item.output)
    text = Path(result["manifest"]).with_suffix(".csv").read_text()
    assert text.splitlines()[1].startswith(f"'{account},")
    assert json.loads(Path(result["manifest"]).read_text())["account"] == account


def test_a_long_batch_is_read_page_by_page_and_replaces_the_old_manifest(make_context, item):
    folder = Path(item.output)
    folder.mkdir()
    (folder / "manifest.jsonl").write_text("old")
    job = settled(make_context(payload=item), seq=1, state=JobState.CANCELLED, batch_id="b")
    items = [job._replace(seq=seq) for seq in range(2, 1203)]

    result, context = finish(make_context, items, folder)

    assert result["rows"] == 1201
    assert context._runtime.reader.pages == 3
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == 1201


def test_drafts_of_items_that_never_ended_well_are_removed(make_context, item):
    context = make_context(payload=item, lease=3)
    item.target.parent.mkdir(parents=True)
    for lease in (1, 3):
        (item.target.parent / f".{context.job.id}-{lease}.part").write_bytes(b"torn")
    job = settled(context, seq=4, state=JobState.FAILED, batch_id="b")

    finish(make_context, [job], item.output)

    assert hidden_files(item.output) == []


def test_an_empty_batch_gives_an_empty_manifest(make_context, tmp_path):
    result, _ = finish(make_context, [], tmp_path / "new" / "out")
    assert result["rows"] == 0
    assert Path(result["manifest"]).read_text() == ""


def test_a_manifest_that_cannot_be_written_is_an_output_error(make_context, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        finish(make_context, [], tmp_path / "file")


def test_the_runner_makes_three_kinds_and_items_run_in_threads():
    kinds = {each.kind: each for each in MediaUniqTaskRunner().definitions()}
    assert set(kinds) == {"media_uniq", "media_uniq.item", "media_uniq.finish"}
    assert kinds["media_uniq.item"].executor == "thread"
    assert kinds["media_uniq.item"].per_worker == os.cpu_count()
    assert not any(each.has_secrets for each in kinds.values())
