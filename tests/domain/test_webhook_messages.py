"""Signatures of webhooks, and which events they are told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest

from haulier.domain import event as events
from haulier.domain.event import Event
from haulier.domain.job import Role
from haulier.domain.moves import RULES, Move
from haulier.domain.webhook import (
    DEFAULT_TYPES,
    KIND,
    TYPES,
    Webhook,
    message_of,
    type_of,
    unknown_types,
)
from haulier.exceptions import AuthenticationError
from haulier.webhooks import sign, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
NOW = 1614265330


def headers(signature, webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=NOW):
    return {
        "Webhook-Id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "WEBHOOK-SIGNATURE": signature,
    }


def signed(body=BODY, webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=NOW):
    return headers(sign(SECRET, webhook_id, timestamp, body), webhook_id, timestamp)


class TestSignature:
    def test_it_is_that_of_the_specifications_example(self):
        signature = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", NOW, BODY)
        assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_it_is_hmac_sha256_over_id_time_and_body(self):
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        expected = hmac.new(key, b"a.7." + BODY, hashlib.sha256).digest()
        assert sign(SECRET, "a", 7, BODY) == f"v1,{base64.b64encode(expected).decode()}"

    def test_what_is_genuine_is_told_its_id(self):
        assert verify(SECRET, signed(), BODY, now=NOW) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
        good = signed()["WEBHOOK-SIGNATURE"]
        for several in (f"v1,AAAA {good}", f"v2,x {good} v1a,y", f"{good} {good}"):
            assert verify(SECRET, headers(several), BODY, now=NOW)

    @pytest.mark.parametrize(
        "given",
        [
            headers("v1,AAAA"),
            headers("v1," + base64.b64encode(bytes(32)).decode()),
            headers(signed()["WEBHOOK-SIGNATURE"].removeprefix("v1,")),
            headers(signed()["WEBHOOK-SIGNATURE"].replace("v1,", "v2,")),
            headers(signed()["WEBHOOK-SIGNATURE"], webhook_id="another"),
            headers(signed()["WEBHOOK-SIGNATURE"], timestamp=NOW + 1),
            headers(signed(b"{}")["WEBHOOK-SIGNATURE"]),
            headers("ü"),
            headers(""),
            {**signed(), "webhook-timestamp": ""},
            {**signed(), "webhook-timestamp": "x"},
            {**signed(), "webhook-timestamp": "-5"},
            {**signed(), "webhook-timestamp": "1" * 400},
            {},
            headers(" ".join(["v1,AAAA"] * 20 + [signed()["WEBHOOK-SIGNATURE"]])),
        ],
    )
    def test_what_is_not_is_refused(self, given):
        with pytest.raises(AuthenticationError):
            verify(SECRET, given, BODY, now=NOW)

    def test_another_secret_refuses_it(self):
        other = "whsec_" + base64.b64encode(b"x" * 24).decode()
        with pytest.raises(AuthenticationError, match="wrong"):
            verify(other, signed(), BODY, now=NOW)

    @pytest.mark.parametrize("off", [301, -301, 10**9])
    def test_an_old_message_is_refused(self, off):
        with pytest.raises(AuthenticationError, match="timestamp"):
            verify(SECRET, signed(), BODY, now=NOW + off)
        assert verify(SECRET, signed(), BODY, now=NOW + off, tolerance=abs(off))

    @pytest.mark.parametrize("secret", ["", "whsec_", "whsec_?", "whsec_AAAA", SECRET[6:]])
    def test_what_is_no_secret_is_said_so_without_it(self, secret):
        with pytest.raises(ValueError, match="begins with") as refused:
            sign(secret, "a", 1, b"")
        assert not secret[6:] or secret[6:] not in str(refused.value)


def happened(type_, role=Role.SINGLE, **more):
    return Event("e", 7, 1_700_000_000_000_000, type_, "id-1", "mail", "q", role, **more)


def webhook(**settings):
    values = {
        "id": "w",
        "url": "https://h/",
        "types": DEFAULT_TYPES,
        "kind": None,
        "queue": None,
        "batch_id": None,
        "description": "",
        "created_at": 0,
        "created_by": "",
        "after": "e:1",
    }
    return Webhook(**{**values, **settings})


class TestTypes:
    def test_every_move_that_ends_a_job_has_one(self):
        for move, rule in RULES.items():
            name = type_of(happened(move))
            if rule.target.value in {"completed", "failed", "cancelled"}:
                assert name == f"job.{rule.target}"
            assert name is None or name in TYPES

    @pytest.mark.parametrize(
        ("role", "name"),
        [
            (Role.SINGLE, "job.completed"),
            (Role.ITEM, "item.completed"),
            (Role.HEAD, "batch.completed"),
            (Role.INNER, "batch.completed"),
        ],
    )
    def test_they_say_what_the_job_is(self, role, name):
        assert type_of(happened(Move.COMPLETE, role)) == name

    def test_nobody_is_told_of_deliveries_and_settings(self):
        assert type_of(happened(Move.COMPLETE)._replace(kind=KIND)) is None
        for type_ in (*events.OF_SCHEDULES, events.CONFIGURED, Move.SNOOZE, Move.GIVE_BACK):
            assert type_of(happened(type_)) is None

    def test_unknown_ones_are_found(self):
        assert unknown_types(["*", "job.*", "item.failed", "batch.paused"]) == []
        wrong = ["", "job", "job.", "job.exploded", "schedule.*", "*.failed", "webhook.test"]
        assert unknown_types(wrong) == wrong


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, True),
        ({"types": ("job.*",)}, True),
        ({"types": ("*",)}, True),
        ({"types": ("job.failed",)}, False),
        ({"types": ("item.*", "batch.*")}, False),
        ({"kind": "mail"}, True),
        ({"kind": "other"}, False),
        ({"queue": "q"}, True),
        ({"queue": "default"}, False),
        ({"batch_id": "b"}, False),
        ({"batch_id": "id-1"}, True),
    ],
)
def test_filters(settings, wanted):
    event = happened(Move.COMPLETE)
    assert webhook(**settings).wants(event, type_of(event)) is wanted


def test_a_reset_is_told_to_everybody():
    event = Event("e", 9, 1, events.RESET)
    assert type_of(event) == "events.reset"
    assert webhook(types=("job.failed",), kind="x").wants(event, "events.reset")
    assert json.loads(message_of(event, "events.reset"))["data"] == {"cursor": "e:9"}


def test_a_message_tells_what_happened_and_no_more():
    event = happened(Move.FAIL, Role.ITEM, batch_id="b", attempt=3, error_type="OSError")
    assert json.loads(message_of(event, "item.failed")) == {
        "type": "item.failed",
        "timestamp": "2023-11-14T22:13:20.000000Z",
        "data": {
            "cursor": "e:7",
            "id": "id-1",
            "kind": "mail",
            "queue": "q",
            "batch_id": "b",
            "attempt": 3,
            "error_type": "OSError",
        },
    }
