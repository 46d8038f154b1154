from __future__ import annotations

from urllib.parse import quote

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.exceptions import ValidationError
from haulier.runners.proxy_input import ProxySpec, Target, is_host, read_proxies

CANARY = "cAnArY-9f"


def parts(spec):
    password = spec.password.reveal() if spec.password else None
    return (spec.scheme.value, spec.host, spec.port, spec.username, password)


def problems(text):
    with pytest.raises(ValidationError) as caught:
        read_proxies(text)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value.__cause__)
    return [(problem.line, problem.field, problem.reason) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("http://proxy.example:3128", ("http", "proxy.example", 3128, None, None)),
        ("https://u:p@proxy.example:443/", ("https", "proxy.example", 443, "u", "p")),
        ("SOCKS5://Proxy.Example:1080", ("socks5", "proxy.example", 1080, None, None)),
        ("socks5://u:p%40ss%3Aw@10.0.0.1:1080", ("socks5", "10.0.0.1", 1080, "u", "p@ss:w")),
        ("http://u:p@ss/w:rd@10.0.0.1:8080", ("http", "10.0.0.1", 8080, "u", "p@ss/w:rd")),
        ("http://u%20x:100%@h:1", ("http", "h", 1, "u x", "100%")),
        ("http://ü:ß@h:1", ("http", "h", 1, "ü", "ß")),
        ("10.0.0.1:8080", ("http", "10.0.0.1", 8080, None, None)),
        ("u:p@10.0.0.1:8080", ("http", "10.0.0.1", 8080, "u", "p")),
        ("10.0.0.1:8080:u:p", ("http", "10.0.0.1", 8080, "u", "p")),
        ("10.0.0.1:8080:u:p@ss:w://%41", ("http", "10.0.0.1", 8080, "u", "p@ss:w://%41")),
        ("[::1]:8080", ("http", "::1", 8080, None, None)),
        ("socks5://u:p@[2001:DB8::1]:1080", ("socks5", "2001:db8::1", 1080, "u", "p")),
        ("[::1]:8080:u:p", ("http", "::1", 8080, "u", "p")),
        ("  10.0.0.1:8080\t", ("http", "10.0.0.1", 8080, None, None)),
    ],
)
def test_reads_a_line(line, expected):
    (spec,) = read_proxies(line)
    assert parts(spec) == expected
    assert spec.line == 1


def test_reads_a_list_and_keeps_physical_line_numbers():
    text = "\ufeff# the good ones\r\n\r\nh1:1\r\n   \r\n  # more\r\nh2:2\n"
    assert [(spec.host, spec.line) for spec in read_proxies(text)] == [("h1", 3), ("h2", 6)]


def test_reads_a_table_in_any_column_order():
    text = (
        "# export\n"
        "Port,HOST,password,username,scheme\n"
        '1080,h1," s, p ""q""",u,socks5\n'
        "\n"
        "# off: 1,h9,,,\n"
        "8080 , h2 ,,,\n"
    )
    assert [(*parts(spec), spec.line) for spec in read_proxies(text)] == [
        ("socks5", "h1", 1080, "u", ' s, p "q"', 3),
        ("http", "h2", 8080, None, None, 6),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_reads_a_table_with_two_columns_and_other_delimiters(delimiter):
    text = f"host{delimiter}port\nh1{delimiter}1\n"
    assert [parts(spec) for spec in read_proxies(text)] == [("http", "h1", 1, None, None)]


def test_names_every_bad_line_and_echoes_none():
    text = "\n".join(
        [
            f"ftp://u:{CANARY}@h1:21",
            "good:1",
            f"h2:99999:u:{CANARY}",
            f"h3:{CANARY}",
            f"http://u{CANARY}@h4:80",
            f"bad host:80:u:{CANARY}",
            f"http://u:{CANARY}%ff@h5:80",
            f"http://u:{CANARY}@h6",
            "h7:80:user",
            "http://u:@h8:80",
            CANARY,
            f"http://h9:80/{CANARY}",
        ]
    )
    found = problems(text)
    assert [(line, field) for line, field, _ in found] == [
        (1, "scheme"),
        (3, "port"),
        (4, "port"),
        (5, "password"),
        (6, "host"),
        (7, "credentials"),
        (8, "port"),
        (9, "password"),
        (10, "password"),
        (11, "port"),
        (12, "port"),
    ]


def test_names_every_bad_row_and_echoes_none():
    text = "\n".join(
        [
            "scheme,host,port,username,password",
            f'socks5,h1,1080,u,"{CANARY}',
            f"socks5,h2,1080,{CANARY}",
            f"socks4,h3,1080,u,{CANARY}",
            f",h4,,u,{CANARY}",
            f",h5,80,,{CANARY}",
            ",h6,80,u,",
            f",,{CANARY},,",
        ]
    )
    assert [(line, field) for line, field, _ in problems(text)] == [
        (2, "proxy"),
        (3, "proxy"),
        (4, "scheme"),
        (5, "port"),
        (6, "credentials"),
        (7, "credentials"),
        (8, "host"),
        (8, "port"),
    ]


def test_names_a_repeated_proxy_and_where_it_stood_before():
    text = "h1:80\nhttp://u:p@h1:80\nHTTP://H1:80\nsocks5://h1:80\nh1:80:u:other\n"
    assert problems(text) == [
        (3, "proxy", "is the same as on line 1"),
        (5, "proxy", "is the same as on line 2"),
    ]


def test_refuses_columns_it_does_not_know_or_has_seen():
    found = problems("host,port,country,host\nh,1,de,h\n")
    assert [(line, field) for line, field, _ in found] == [(1, "header"), (1, "header")]
    assert "column 3" in found[0][2]


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "host,port\n"])
def test_refuses_a_list_without_proxies(text):
    assert problems(text) == [(None, "proxies", "the list holds no proxy")]


@given(st.text())
def test_any_text_is_read_or_refused(text):
    found = []
    try:
        found += read_proxies(text)
    except ValidationError as error:
        found += error.problems
    assert found


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1))
def test_a_refusal_never_repeats_a_password(username, password):
    secret = f"{CANARY}{password}"
    for line in (
        f"http://{quote(username)}:{quote(secret)}@h:0",
        f"h:0:{quote(username)}:{quote(secret)}",
        f"http://{quote(username)}:{quote(secret)}@h",
    ):
        problems(line)


@pytest.mark.parametrize(
    "fields",
    [
        {"password": CANARY},
        {"username": "u", "password": CANARY, "port": 0},
        {"username": "u", "password": CANARY, "colour": "red"},
        {"username": "a:b", "password": CANARY},
        {"username": "a\nb", "password": CANARY},
        {"username": "u", "password": [CANARY]},
    ],
)
def test_a_refused_proxy_shows_no_password(fields):
    with pytest.raises(pydantic.ValidationError) as caught:
        ProxySpec.model_validate({"host": "h", "port": 1, **fields})
    assert CANARY not in f"{caught.value} {caught.value!r}"


def test_a_proxy_shows_neither_user_nor_password():
    spec = ProxySpec(scheme="socks5", host="[::1]", port=1080, username="u", password=CANARY)
    assert spec.address == "socks5://[::1]:1080"
    assert spec.has_credentials
    assert CANARY not in f"{spec} {spec!r} {spec.model_dump_json()}"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("proxy.example", True),
        ("proxy.example.", True),
        ("my_proxy-1", True),
        ("10.0.0.1", True),
        ("::1", True),
        ("", False),
        ("a..b", False),
        ("-a", False),
        ("a-", False),
        ("10.0.0.256", False),
        ("fe80::1%eth0", False),
        ("a" * 64, False),
        (".".join(["a" * 60] * 5), False),
        ("bücher.example", False),
        ("a b", False),
        ("h\n", False),
    ],
)
def test_knows_a_host(text, valid):
    assert is_host(text) is valid


@pytest.mark.parametrize(
    ("url", "authority", "port", "path"),
    [
        ("http://h", "h", 80, "/"),
        ("https://h", "h", 443, "/"),
        ("http://h:8080/a/b?c=d#e", "h:8080", 8080, "/a/b?c=d"),
        ("https://[::1]:8443/", "[::1]:8443", 8443, "/"),
    ],
)
def test_takes_a_check_url_apart(url, authority, port, path):
    target = Target.parse(url)
    assert (target.authority, target.port, target.path) == (authority, port, path)
    assert target.url == f"{url.split(':')[0]}://{authority}{path}"


@pytest.mark.parametrize(
    "url",
    [
        "h",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h:0",
        "http://h:99999",
        "http://[::1",
        "http://h/a b",
        "http://h/ü",
        "http://h/\r\nX: y",
        "http://a..b/",
    ],
)
def test_refuses_a_check_url(url):
    with pytest.raises(ValueError, match=r"must|valid|not a URL"):
        Target.parse(url)
