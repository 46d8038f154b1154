"""The bulk kinds over HTTP: from a list to a batch, or to everything that is wrong with it."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic_core import from_json

from haulier.domain.job import Role
from haulier.exceptions import ConfigurationError
from haulier.ports import JobFilter
from haulier.services.payload import decode
from haulier.web.starts import own_echo_url

MEDIA = "/api/v1/media-uniq/start"
PROXIES = "/api/v1/proxy-diagnostics/start"


async def head_of(jobs, answer):
    """The one job that a start has enqueued, and its payload."""
    assert answer.status_code == 202, answer.text
    job = await jobs.store.get(answer.json()["id"])
    assert job.role is Role.HEAD
    assert answer.json()["status_url"] == f"/api/v1/jobs/{job.id}/status"
    assert answer.headers["location"] == f"/api/v1/jobs/{job.id}"
    return job


async def nothing_enqueued(jobs):
    return not (await jobs.store.find(JobFilter())).jobs


def media_body(**changes):
    return {"accounts": ["ann"], "sources": ["sea.png"], "output": "run"} | changes


async def test_media_uniq_is_started_with_paths_of_the_server(client, jobs, options):
    mark = {"text": "{account}", "size": 0.1}
    answer = await client.post(MEDIA, json=media_body(spec="avatar", watermark=mark))
    payload = from_json((await head_of(jobs, answer)).payload)
    assert payload["accounts"] == ["ann"]
    assert payload["sources"] == [str(options.media_root / "sea.png")]
    assert payload["output"] == str(options.output_root / "run")
    assert (payload["spec"], payload["watermark"]["text"]) == ("avatar", "{account}")


async def test_media_uniq_takes_a_whole_spec_a_folder_and_an_image_watermark(client, jobs, options):
    spec = {"name": "tiny", "width": 32, "height": 32, "format": "png"}
    body = media_body(sources=["."], output=".", spec=spec, watermark={"image": "sea.png"})
    payload = from_json((await head_of(jobs, await client.post(MEDIA, json=body))).payload)
    assert payload["sources"] == [str(options.media_root)]
    assert payload["output"] == str(options.output_root)
    assert payload["spec"]["width"] == 32
    assert payload["watermark"]["image"] == str(options.media_root / "sea.png")


async def test_accounts_come_as_csv_text(client, jobs):
    body = media_body(accounts_csv="id;account\n1;ann\n2;bob\n")
    del body["accounts"]
    payload = from_json((await head_of(jobs, await client.post(MEDIA, json=body))).payload)
    assert payload["accounts"] == ["ann", "bob"]


async def test_three_bad_lines_among_a_hundred_accounts_are_named(client, check, jobs):
    lines = ["account", *(f"account{number}" for number in range(2, 102))]
    lines[16], lines[49], lines[99] = "account3", "x" * 300, '"open'
    body = media_body(accounts_csv="\n".join(lines))
    del body["accounts"]
    errors = check.refused(await client.post(MEDIA, json=body))
    assert errors == [("account", 17), ("account", 50), ("account", 100)]
    assert await nothing_enqueued(jobs)


@pytest.mark.parametrize("way", ["list", "lines", "table"])
async def test_three_bad_lines_among_a_hundred_proxies_are_named(client, check, jobs, way):
    if way == "table":
        lines = ["host,port", *(f"10.0.0.{number},80" for number in range(2, 102))]
        lines[16], lines[49], lines[99] = "10.0.0.17,none", "10.0.0.50", "10.0.0.3,80"
        fields = ["port", "proxy", "proxy"]
    else:
        lines = [f"10.0.0.{number}:80" for number in range(1, 101)]
        lines[16], lines[49], lines[99] = "10.0.0.17", "ftp://10.0.0.50:80", "10.0.0.3:80"
        fields = ["port", "scheme", "proxy"]
    body = {"proxies": lines} if way == "list" else {"proxies_csv": "\n".join(lines)}
    errors = check.refused(await client.post(PROXIES, json=body))
    assert errors == list(zip(fields, [17, 50, 100], strict=True))
    assert await nothing_enqueued(jobs)


async def test_everything_wrong_is_told_at_once(client, check, jobs):
    body = media_body(
        accounts_csv="account\nann\nann\n",
        sources=["sea.png", "/etc/hostname", "gone.png"],
        output="../run",
        watermark={"image": "none.png"},
    )
    del body["accounts"]
    errors = check.refused(await client.post(MEDIA, json=body))
    assert errors == [
        ("account", 3),
        ("sources.1", None),
        ("sources.2", None),
        ("output", None),
        ("watermark.image", None),
    ]
    assert await nothing_enqueued(jobs)


OUTSIDE = (
    "/etc/hostname",
    "../secret.png",
    "sub/../../secret.png",
    "..",
    "sub/..",
    "link.png",
    "linked/secret.png",
    "linked",
    "folder",
    "loop",
    "gone.png",
    "nul\0",
    "n" * 300,
    "sea.png/x",
    "~/x.png",
)


@pytest.mark.parametrize("field", ["sources.1", "watermark.image", "watermark.font"])
async def test_files_outside_the_media_folder_are_refused(
    client, check, jobs, options, tmp_path, field
):
    (tmp_path / "secret.png").write_bytes(b"secret")
    media = options.media_root
    (media / "sub").mkdir()
    (media / "folder").mkdir()
    (media / "folder" / "inner.png").symlink_to(tmp_path / "secret.png")
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    (media / "linked").symlink_to(tmp_path)
    (media / "loop").symlink_to(media / "loop")
    for path in OUTSIDE:
        body = {
            "sources.1": media_body(sources=["sea.png", path]),
            "watermark.image": media_body(watermark={"image": path}),
            "watermark.font": media_body(watermark={"text": "x", "font": path}),
        }[field]
        assert check.refused(await client.post(MEDIA, json=body)) == [(field, None)]
    assert await nothing_enqueued(jobs)


async def test_links_that_stay_inside_are_followed_once(client, jobs, options):
    (options.media_root / "alias.png").symlink_to("sea.png")
    answer = await client.post(MEDIA, json=media_body(sources=["alias.png", "."]))
    payload = from_json((await head_of(jobs, answer)).payload)
    assert payload["sources"] == [str(options.media_root / "sea.png"), str(options.media_root)]


@pytest.mark.parametrize(
    "path", ["/tmp", "../run", "a/../../b", "link", "link/new", "a-file", "n" * 300, "nul\0", ""]
)
async def test_folders_outside_the_output_folder_are_refused(
    client, check, jobs, options, tmp_path, path
):
    (options.output_root / "link").symlink_to(tmp_path)
    (options.output_root / "a-file").write_bytes(b"")
    assert check.refused(await client.post(MEDIA, json=media_body(output=path))) == [
        ("output", None)
    ]
    assert await nothing_enqueued(jobs)


async def test_a_missing_media_folder_has_no_files(client, check, options):
    (options.media_root / "sea.png").unlink()
    options.media_root.rmdir()
    for source in ("sea.png", "."):
        answer = await client.post(MEDIA, json=media_body(sources=[source]))
        assert check.refused(answer) == [("sources.0", None)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"accounts": []}, "accounts"),
        ({"accounts": None}, "accounts"),
        ({"accounts_csv": "account\nbob\n"}, "accounts"),
        ({"accounts": ["ann", "ann"]}, "accounts"),
        ({"sources": []}, "sources"),
        ({"sources": [""]}, "sources.0"),
        ({"spec": "round"}, "spec"),
        ({"watermark": {"text": ""}}, "watermark.text.text"),
        ({"watermark": {"image": "sea.png", "size": 9}}, "watermark.image.size"),
        ({"watermark": {}}, "watermark.text.text"),
        ({"queue": "x"}, "queue"),
    ],
)
async def test_a_bad_media_request_is_refused_by_field(client, check, jobs, changes, field):
    answer = await client.post(MEDIA, json=media_body(**changes))
    assert check.refused(answer) == [(field, None)]
    assert await nothing_enqueued(jobs)


async def test_proxies_are_checked_against_this_server(client, jobs):
    lines = ["# mine", "socks5://ann:s3cret-canary@10.0.0.1:1080", "", "10.0.0.2:3128"]
    answer = await client.post(PROXIES, json={"proxies": lines, "tries": 2, "timeout": 1.5})
    job = await head_of(jobs, answer)
    assert b"s3cret-canary" not in job.payload
    start = decode(jobs.registry.get(job.kind), job.payload, job.id, jobs.sealer)
    assert (start.check_url, start.tries, start.timeout) == ("http://127.0.0.1:80/echo", 2, 1.5)
    assert [(proxy.address, proxy.line) for proxy in start.proxies] == [
        ("socks5://10.0.0.1:1080", 2),
        ("http://10.0.0.2:3128", 4),
    ]
    assert start.proxies[0].password.reveal() == "s3cret-canary"
    shown = await client.get(f"/api/v1/jobs/{job.id}")
    assert shown.json()["payload"]["proxies"][0]["password"] == "******"
    assert "s3cret-canary" not in shown.text
    assert "$sealed" not in shown.text


async def test_the_operator_sets_the_check_url(options, ask_with, jobs):
    own = dataclasses.replace(options, check_url="https://check.example/seen")
    async with ask_with(own) as client:
        answer = await client.post(PROXIES, json={"proxies_csv": "host,port\nh.example,80\n"})
    payload = from_json((await head_of(jobs, answer)).payload)
    assert payload["check_url"] == "https://check.example/seen"


@pytest.mark.parametrize("name", ["check_url", "ca_file", "verify_tls"])
async def test_a_client_does_not(client, check, jobs, name):
    body = {"proxies": ["10.0.0.1:80"], name: "http://127.0.0.1/"}
    assert check.refused(await client.post(PROXIES, json=body)) == [(name, None)]
    assert await nothing_enqueued(jobs)


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, [("proxies", None)]),
        ({"proxies": ["a:1"], "proxies_csv": "a:1"}, [("proxies", None)]),
        ({"proxies": []}, [("proxies", None)]),
        ({"proxies": ["a:1", "b:2\nc:3"]}, [("proxy", 2)]),
        ({"proxies": ["a:1"], "tries": 0}, [("tries", None)]),
        ({"proxies": ["a:1"], "timeout": 61}, [("timeout", None)]),
        ({"proxies": ["a:1", 7]}, [("proxies.1", None)]),
    ],
)
async def test_a_bad_proxy_request_is_refused_by_field(client, check, jobs, body, errors):
    assert check.refused(await client.post(PROXIES, json=body)) == errors
    assert await nothing_enqueued(jobs)


@pytest.mark.parametrize(
    ("server", "url"),
    [
        (("127.0.0.1", 8470), "http://127.0.0.1:8470/echo"),
        (("127.0.0.5", None), "http://127.0.0.5:80/echo"),
        (("::1", 8470), "http://[::1]:8470/echo"),
    ],
)
def test_the_own_echo_is_where_the_request_came_in(server, url):
    assert own_echo_url(server) == url


@pytest.mark.parametrize("server", [None, ("192.0.2.1", 80), ("/run/haulier.sock", None), ("", 1)])
def test_without_a_loopback_address_there_is_no_own_echo(server):
    with pytest.raises(ConfigurationError, match="check URL"):
        own_echo_url(server)


@pytest.mark.parametrize("url", ["echo", "ftp://host/", "http://user:secret@host/", ""])
def test_a_bad_check_url_is_the_operators_fault(options, url):
    with pytest.raises(ConfigurationError, match="check_url") as caught:
        dataclasses.replace(options, check_url=url)
    assert "secret" not in str(caught.value)
