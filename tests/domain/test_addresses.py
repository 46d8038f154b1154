"""Which hosts and URLs may be called for users."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.addresses import AllowList, private_name, read_host, read_url, special
from haulier.exceptions import ConfigurationError, ForbiddenAddressError


def forbidden(host: str) -> bool:
    """Whether a host can be seen to be no public one."""
    try:
        found = read_host(host)
    except ForbiddenAddressError:
        return True
    return bool(private_name(found) if isinstance(found, str) else special(found))


NOT_PUBLIC = """
127.0.0.1 127.1 127.0.1 127.127.127.127 127.0.0.1. 2130706433 0x7f000001 0x7F.0x0.0x0.0x1
0177.0.0.1 0177.0000.0000.0001 017700000001 00000177.1 0x7f.1 127.0x1 127.0.0.01 1 0 0x 0x0
0.0.0.0 0 00 0.1 000.000.000.000 10.0.0.1 10.1 167772161 0xa000001 012.0.0.1 172.16.0.1
172.31.255.255 192.168.1.1 192.168.257 3232235777 0xC0A80101 0300.0250.1.1 169.254.169.254
2852039166 0xA9FEA9FE 0251.0376.0251.0376 169.254.43518 100.64.0.1 100.100.100.200 168.63.129.16
192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 192.88.99.1 [::1] ::1 [::] [0:0:0:0:0:0:0:1] [0000::1] [::ffff:127.0.0.1]
[::ffff:7f00:1] [::127.0.0.1] [::ffff:0:127.0.0.1] [::ffff:8.8.8.8] [64:ff9b::7f00:1]
[64:ff9b::8.8.8.8] [64:ff9b:1::1] [2002:7f00:1::] [2002:808:808::1] [2001:0:808:808::1]
[2001:db8::1] [3fff::1] [fc00::1] [fd00:ec2::254] [fe80::1] [fe80::1%25eth0] [fe80::1%eth0]
[fec0::1] [ff02::1] [100::1] [5f00::1] [2a00:1450::5efe:10.0.0.1] [2a00:1450::200:5efe:7f00:1]
[::1%lo] [4000::1] [1::] [::1 localhost LOCALHOST localhost. a.localhost local.host.localhost
printer.local db.internal metadata.google.internal metadata.goog instance-data metadata intranet
redis wiki.corp nas.home router.lan x.home.arpa abc.onion \u2460\u2461\u2466.\u24ea.\u24ea.\u2460
127\u30020\u30020\u30021 \uff11\uff12\uff17.0.0.1 \u217cocalhost loc\u00adalhost exam\u212aple.com
1.1.1.1%00 a%2eb %31%32%37.0.0.1 127.0.0.1%0a example.com:80 user@example.com example.com/
ex_ample..com -a.com a-.com .com . .. example.com. 1.2.3 1.2.3.4.5 1.2.3.256 1.2.3.4. 08.8.8.8
8.8.8.08 0x8.8.8.8
"""


PUBLIC = """
8.8.8.8 1.1.1.1 93.184.216.34 [2606:4700::1111] 2606:4700::1111 example.com EXAMPLE.com
a.b.example.com xn--bcher-kva.example hooks_1.example.com 1e100.net 127.0.0.1.nip.io
172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.0 169.253.0.1 223.255.255.255
localhost.example.com
"""


@pytest.mark.parametrize(
    "host", [*dict.fromkeys(NOT_PUBLIC.split()), "", " ", "a b", "a\nb", "a\x00.com"]
)
def test_hosts_that_are_not_plainly_public_are_refused(host):
    assert forbidden(host)


@pytest.mark.parametrize(
    "host",
    PUBLIC.split(),
)
def test_public_hosts_pass(host):
    assert not forbidden(host)


@given(st.integers(0, 2**32 - 1))
def test_an_address_that_python_says_is_not_global_is_special(number):
    address = IPv4Address(number)
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert special(address)


@given(st.integers(0, 2**128 - 1))
def test_an_ipv6_address_that_python_says_is_not_global_is_special(number):
    address = IPv6Address(number)
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert special(address)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::", "2002::"]))
def test_no_ipv4_address_passes_within_an_ipv6_one(number, prefix):
    shift = 80 if prefix == "2002::" else 0
    assert special(IPv6Address(int(IPv6Address(prefix)) | number << shift))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "unix:///var/run/docker.sock",
        "http:example.com",
        "http:/example.com",
        "http:///example.com",
        "http://",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1\\@example.com/",
        "https:\\\\127.0.0.1/",
        "https://example.com\\.127.0.0.1/",
        "https://example.com:0/",
        "https://example.com:/",
        "https://example.com:99999/",
        "https://example.com:80:80/",
        "https://example.com:8 0/",
        "https://exa mple.com/",
        "https://example.com/\r\nHost: evil",
        "https://example.com/\t",
        " https://example.com/",
        "https://bücher.example/",
        "https://[::1/",
        "https://::1/",
        "https://[example.com]/",
        "https://%31%32%37.0.0.1/",
        "https://example.com%23@127.0.0.1/",
        "https://example.com/" + "a" * 2000,
    ],
)
def test_what_is_not_plainly_a_url_is_refused(url):
    with pytest.raises(ForbiddenAddressError):
        read_url(url)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("https://example.com", "https", "example.com", 443),
        ("http://Example.com/a?b=c#d", "http", "example.com", 80),
        ("HTTPS://example.com:8443/@x", "https", "example.com", 8443),
        ("http://8.8.8.8:80/", "http", ip_address("8.8.8.8"), 80),
        ("http://[2606:4700::1111]:81/", "http", ip_address("2606:4700::1111"), 81),
        ("http://[2606:4700::1111]/", "http", ip_address("2606:4700::1111"), 80),
    ],
)
def test_a_url_is_taken_apart(url, scheme, host, port):
    found = read_url(url)
    assert (found.scheme, found.host, found.port) == (scheme, host, port)


def test_an_allow_list_has_names_addresses_and_networks_with_and_without_ports():
    allowed = AllowList.parse(
        ["Redis", "hooks.lan:8080", "10.0.0.0/8", "127.0.0.1:9000", "[::1]:9001", "fd00::/8", " a "]
    )
    assert allowed.has_name("redis", 1)
    assert allowed.has_name("a", 1)
    assert allowed.has_name("hooks.lan", 8080)
    assert not allowed.has_name("hooks.lan", 8081)
    assert not allowed.has_name("x.redis", 1)
    assert allowed.has_address(ip_address("10.9.9.9"), 1)
    assert not allowed.has_address(ip_address("10.9.9.9"), 1, exactly=True)
    assert allowed.has_address(ip_address("127.0.0.1"), 9000, exactly=True)
    assert not allowed.has_address(ip_address("127.0.0.1"), 9001)
    assert allowed.has_address(ip_address("::1"), 9001)
    assert allowed.has_address(ip_address("fd00::1"), 1)
    assert not allowed.has_address(ip_address("::ffff:10.0.0.1"), 1)


NO_ENTRY = """
:80 a: a:0 a:65536 a:b [::1]80 [::1]: [::1 10.0.0.1/8 http://a a/b * *.lan 127.1 0x7f.1 a,b ü
1.2.3.4:80:80
"""


@pytest.mark.parametrize(
    "entry",
    ["", " ", "a b", *NO_ENTRY.split()],
)
def test_an_entry_that_means_nothing_is_refused(entry):
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        AllowList.parse([entry])
