"""What is masked, in which forms, and what is left alone."""

from __future__ import annotations

import base64
import html
import json
import time
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.redaction import (
    forms,
    is_secret_name,
    shown,
    without,
    without_credentials,
)
from haulier.domain.sealed import MASK, SEALED

CANARY = 'k4n"a/r+y ü&7\\f=x?z'

ENCODERS = {
    "plain": lambda text: f"<{text}>",
    "json": json.dumps,
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False),
    "json in json": lambda text: json.dumps({"body": text}),
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "ascii": ascii,
    "quote": lambda text: quote(text, safe=""),
    "quote path": quote,
    "quote_plus": quote_plus,
    "lower-case quote": lambda text: quote(text, safe="").lower() if text.islower() else text,
    "query": lambda text: urlencode({"q": text}),
    "html": html.escape,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for urls": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "basic 0": lambda text: base64.b64encode(f"ann:{text}:12".encode()).decode(),
    "basic 1": lambda text: base64.b64encode(f"anna:{text}:".encode()).decode(),
    "basic 2": lambda text: base64.b64encode(f"annab:{text}".encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "reversed": lambda text: text[::-1],
}


@pytest.mark.parametrize("way", ENCODERS)
def test_a_value_is_masked_in_whatever_form_it_is_written(way):
    written = ENCODERS[way](CANARY)
    cleaned = without(f"before {written} after", forms(CANARY))
    assert MASK in cleaned
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    # Nothing of any length that could be turned back is left.
    kept = cleaned.replace(MASK, "").removeprefix("before ").removesuffix(" after")
    assert len(kept) < len(written) / 2 or len(kept) < 14, kept


@given(st.text(min_size=8, max_size=40), st.text(max_size=6), st.text(max_size=6))
def test_no_secret_of_some_length_is_left_in_base64(secret, before, after):
    try:
        raw = (before + secret + after).encode()
    except UnicodeEncodeError:
        return
    text = base64.b64encode(raw).decode()
    cleaned = without(text, forms(secret))
    # Two letters at each border hold bits of the neighbours.
    assert len(cleaned.replace(MASK, "")) <= len(text) - len(secret.encode()) * 8 // 6 + 2


@pytest.mark.parametrize("value", ["", "a", "ab", "abc"])
def test_short_values_do_not_blank_the_text(value):
    assert forms(value) == frozenset()
    assert without("a cab is abc", forms(value)) == "a cab is abc"


def test_a_short_value_is_masked_only_as_it_is():
    assert forms("abcd") == {"abcd", "61626364"}


SECRETS = """
password Password proxy_password dbPassword passwd PWD secret client_secret token access_token
accessToken X-Auth-Token api_key apiKey API-KEY authorization Proxy-Authorization cookie
Set-Cookie private_key passphrase credentials signing_key secret_key csrfToken HTTP_AUTHORIZATION
"""


@pytest.mark.parametrize(
    "name",
    SECRETS.split(),
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


OTHERS = """
key name user author authored tokens token_count cookie_name secretary password_file token_id
has_credentials_left passwords_left token_url keyboard monkey cookie_robot public_key task_id
state
"""


@pytest.mark.parametrize(
    "name",
    ["", *OTHERS.split()],
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://ann:s3cret@h:80/x", f"http://{MASK}@h:80/x"),
        ("at socks5://ann:p%40ss@h:1 now", f"at socks5://{MASK}@h:1 now"),
        ("postgresql://u:a@b@h/db", f"postgresql://{MASK}@h/db"),
        ("redis://:s3cret@h", f"redis://{MASK}@h"),
        ("https://token-1@h/", f"https://{MASK}@h/"),
        ("https://h/a@b", "https://h/a@b"),
        ("Authorization: Bearer abc.def-123456", f"Authorization: {MASK}"),
        ("got Bearer abc.def-123456 there", f"got Bearer {MASK} there"),
        ("{'authorization': 'Basic YW5uOnMzY3JldA=='}", f"{{'authorization': '{MASK}'}}"),
        ("(b'Proxy-Authorization', b'Basic YW5uOnM=')", f"(b'Proxy-Authorization', b'{MASK}')"),
        ("Cookie: sid=12345; theme=dark", f"Cookie: {MASK}"),
        ("Set-Cookie: sid=12345", f"Set-Cookie: {MASK}"),
        ("/login?user=a&password=hunter22&b=c", f"/login?user=a&password={MASK}&b=c"),
        ('{"api_key": "12345678", "b": 1}', f'{{"api_key": "{MASK}", "b": 1}}'),
        ("login(user='a', password='hunter22')", f"login(user='a', password='{MASK}')"),
        ("access_token=abcdef", f"access_token={MASK}"),
    ],
)
def test_places_of_credentials_are_masked(text, left):
    assert without_credentials(text) == left
    assert without_credentials(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "the token expired",
        "Basic authentication is refused",
        "a wrong cookie, try again",
        "invalid password",
        "secret: no",
        "mail to ann@example.com",
        "bearer of bad news",
        "no password given; see https://example.com/docs",
        "",
    ],
)
def test_plain_words_stay(text):
    assert without_credentials(text) == text


def test_json_is_shown_without_secrets_and_otherwise_as_it_is():
    given_ = {
        "user": "ann",
        "password": "hunter22",
        "proxy": {"url": "http://u:p@h:1/", "token": {SEALED: "1.x.y"}, "tokens": 7},
        "list": [{"api_key": "x"}, {"api_key": None}, {"secret": ""}, {"token": 5}],
        "note": "see https://h/",
        "none": None,
    }
    assert shown(given_) == {
        "user": "ann",
        "password": MASK,
        "proxy": {"url": f"http://{MASK}@h:1/", "token": MASK, "tokens": 7},
        "list": [{"api_key": MASK}, {"api_key": None}, {"secret": ""}, {"token": 5}],
        "note": "see https://h/",
        "none": None,
    }


def test_what_is_nested_without_end_ends():
    node: list[object] = []
    node.append(node)
    assert MASK in repr(shown(node))


@pytest.mark.parametrize("part", ["a-", "token=", "http://", "cookie'", "bearer ", "password", " "])
def test_long_texts_take_no_longer_than_they_are(part):
    """Twice the text, about twice the time: by far not the square of it."""

    def seconds(length):
        text = part * (length // len(part))
        began = time.perf_counter()
        without_credentials(text)
        return time.perf_counter() - began

    assert min(seconds(160_000) for _ in range(3)) < 0.01 + 40 * min(
        seconds(16_000) for _ in range(3)
    )
