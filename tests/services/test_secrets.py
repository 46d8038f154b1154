"""Secrets: sealed at rest, masked in every text, opened only where they are asked for."""

from __future__ import annotations

import base64
import json
import pickle
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from haulier.exceptions import AuthenticationError, ConfigurationError, ValidationError
from haulier.services.payload import decode, encode, validate
from haulier.services.registry import define_task
from haulier.services.secrets import KeyFile, Scrubber, Sealer, Secret, scrub_current

JOB = "01234567-89ab-7def-8123-456789abcdef"
OTHER_JOB = "01234567-89ab-7def-8123-456789abcdee"
CANARY = "canary-7f3a-s3cr3t"
KEY = bytes(range(32))


class Account(BaseModel):
    name: str
    password: Secret
    spare: Secret | None = None


def login(accounts: list[Account], token: Secret, hosts: dict[str, Secret]) -> None: ...


def simple(password: Secret, note: Any = None) -> None: ...


def pair(first: Secret, second: Secret) -> None: ...


LOGIN, SIMPLE, PAIR = define_task(login), define_task(simple), define_task(pair)
OTHER_KIND = define_task(simple, kind="another")


def sealer(key: bytes = KEY) -> Sealer:
    return Sealer(lambda: key)


def sealed(definition, payload, job_id=JOB, key=KEY) -> bytes:
    return encode(definition, validate(definition, payload), job_id, sealer(key))


def opened(definition, data, job_id=JOB, key=KEY) -> Any:
    return decode(definition, data, job_id, sealer(key))


class TestSealing:
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_what_was_sealed_is_what_is_revealed(self, value):
        data = sealed(SIMPLE, {"password": value})
        assert opened(SIMPLE, data).password.reveal() == value

    def test_secrets_in_lists_models_and_dictionaries(self):
        data = sealed(
            LOGIN,
            {
                "accounts": [
                    {"name": "a", "password": "pass-a"},
                    {"name": "b", "password": "pass-b", "spare": "spare-b"},
                ],
                "token": "tok",
                "hosts": {"x.example": "host-x", "y/z": "host-y"},
            },
        )
        for plain in (b"pass-a", b"pass-b", b"spare-b", b'"tok"', b"host-x"):
            assert plain not in data
        back = opened(LOGIN, data)
        assert [account.password.reveal() for account in back.accounts] == ["pass-a", "pass-b"]
        assert back.accounts[0].spare is None
        assert back.accounts[1].spare.reveal() == "spare-b"
        assert back.token.reveal() == "tok"
        assert {name: value.reveal() for name, value in back.hosts.items()} == {
            "x.example": "host-x",
            "y/z": "host-y",
        }

    def test_equal_secrets_are_sealed_differently_each_time(self):
        boxes = [json.loads(sealed(PAIR, {"first": "x", "second": "x"})) for _ in range(2)]
        texts = [box[field]["$sealed"] for box in boxes for field in ("first", "second")]
        assert len(set(texts)) == 4

    def test_decoding_opens_nothing(self):
        data = sealed(SIMPLE, {"password": CANARY})

        def no_key() -> bytes:
            raise AssertionError("the key was asked for")

        payload = decode(SIMPLE, data, JOB, Sealer(no_key))
        assert CANARY not in repr(payload)

    def test_what_is_not_a_string_is_refused_without_being_repeated(self):
        with pytest.raises(ValidationError) as caught:
            validate(SIMPLE, {"password": [CANARY]})
        assert CANARY not in str(caught.value)
        assert "string" in str(caught.value)


class TestFraud:
    def refuse(self, definition, tree, job_id=JOB, key=KEY, field="password") -> None:
        payload = opened(definition, json.dumps(tree).encode(), job_id, key)
        with pytest.raises(AuthenticationError):
            getattr(payload, field).reveal()

    def test_a_sealed_value_moved_to_another_job_field_or_kind_does_not_open(self):
        tree = json.loads(sealed(SIMPLE, {"password": CANARY}))
        self.refuse(SIMPLE, tree, job_id=OTHER_JOB)
        self.refuse(OTHER_KIND, tree)
        two = json.loads(sealed(PAIR, {"first": "one", "second": "two"}))
        self.refuse(PAIR, {"first": two["second"], "second": two["first"]}, field="first")

    def test_another_key_does_not_open_it_and_says_why(self):
        payload = opened(SIMPLE, sealed(SIMPLE, {"password": CANARY}), key=bytes(32))
        with pytest.raises(AuthenticationError, match="sealed with key") as caught:
            payload.password.reveal()
        assert CANARY not in str(caught.value)

    @given(st.data())
    def test_one_changed_character_and_it_does_not_open(self, data):
        tree = json.loads(sealed(SIMPLE, {"password": CANARY}))
        text = tree["password"]["$sealed"]
        place = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[place]))
        tree["password"]["$sealed"] = text[:place] + other + text[place + 1 :]
        self.refuse(SIMPLE, tree)

    @pytest.mark.parametrize("box", ["", "1", "1.x", "1.x.y", "2.a.b", None, 7, "1.." + "A" * 8])
    def test_what_was_never_sealed_does_not_open(self, box):
        key_id = json.loads(sealed(SIMPLE, {"password": "x"}))["password"]["$sealed"].split(".")[1]
        if isinstance(box, str):
            box = box.replace("1.x", f"1.{key_id}").replace("1..", f"1.{key_id}.")
        self.refuse(SIMPLE, {"password": {"$sealed": box}})

    @pytest.mark.parametrize(
        "note", [{"$sealed": "1.a.b"}, {"$secret": 0}, {"$secret": 9}, {"$secret": "x"}]
    )
    def test_a_payload_cannot_pretend_to_hold_sealed_values(self, note):
        with pytest.raises(ValidationError):
            sealed(SIMPLE, {"password": CANARY, "note": [note]})

    def test_words_beside_others_are_plain_values(self):
        note = {"$sealed": "x", "more": 1}
        assert opened(SIMPLE, sealed(SIMPLE, {"password": "p", "note": note})).note == note


class TestCanary:
    """The plain value shows up nowhere but where it was asked for."""

    def test_it_is_in_no_text_of_a_secret(self):
        secret = Secret(CANARY)
        account = Account(name="a", password=CANARY)
        texts = [
            repr(secret),
            str(secret),
            f"{secret}",
            f"{secret!r:>40}",
            repr(account),
            str(account),
            str(account.model_dump()),
            account.model_dump_json(),
            repr([secret]),
        ]
        assert not [text for text in texts if CANARY in text]

    def test_it_is_not_in_a_stored_payload(self):
        data = sealed(SIMPLE, {"password": CANARY, "note": "n"})
        assert CANARY.encode() not in data
        assert base64.b64encode(CANARY.encode()) not in data

    def test_a_secret_cannot_be_pickled(self):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(Secret(CANARY))

    def test_it_is_masked_in_texts_once_it_was_revealed(self):
        with Scrubber() as scrubber:
            secret = Secret(CANARY)
            assert scrubber.scrub(f"no {CANARY} yet") == f"no {CANARY} yet"
            secret.reveal()
            assert scrubber.scrub(f"login with {CANARY}!") == "login with ******!"
            assert scrub_current(f"login with {CANARY}!") == "login with ******!"
        assert scrub_current(CANARY) == CANARY

    def test_longer_secrets_are_masked_before_their_parts(self):
        with Scrubber() as scrubber:
            Secret("abcd").reveal()
            Secret("abcdefgh").reveal()
            assert scrubber.scrub("abcdefgh abcd") == "****** ******"

    def test_jobs_do_not_see_each_others_secrets(self):
        with Scrubber() as outer:
            Secret("outer-value").reveal()
            with Scrubber() as inner:
                Secret("inner-value").reveal()
                assert inner.scrub("outer-value inner-value") == "outer-value ******"
            assert outer.scrub("outer-value inner-value") == "****** inner-value"

    def test_secrets_compare_by_value(self):
        assert Secret("a") == Secret("a")
        assert Secret("a") != Secret("b")
        assert Secret("a") != "a"
        assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


class TestKeyFile:
    def test_it_is_made_on_first_use_for_its_owner_alone(self, tmp_path):
        path = tmp_path / "deep" / "secret.key"
        key = KeyFile(path).load()
        assert len(key) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert KeyFile(path).load() == key
        assert [file.name for file in path.parent.iterdir()] == ["secret.key"]

    def test_two_first_uses_at_once_get_the_same_key(self, tmp_path):
        path = tmp_path / "secret.key"
        keys: list[Any] = []
        start = threading.Barrier(8)

        def load() -> None:
            start.wait()
            try:
                keys.append(KeyFile(path).load())
            except Exception as error:  # noqa: BLE001 - shown by the assertion below
                keys.append(error)

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(keys)) == 1, keys

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
    def test_one_that_others_can_reach_is_refused_with_the_remedy(self, tmp_path, mode):
        path = tmp_path / "secret.key"
        KeyFile(path).load()
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            KeyFile(path).load()

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_one_for_its_owner_alone_is_fine(self, tmp_path, mode):
        path = tmp_path / "secret.key"
        key = KeyFile(path).load()
        path.chmod(mode)
        assert KeyFile(path).load() == key

    @pytest.mark.parametrize(
        "content", [b"", b"short", b"\xff\x00" * 50, base64.b64encode(bytes(31)), b"A" * 100]
    )
    def test_one_that_holds_no_key_is_refused(self, tmp_path, content):
        path = tmp_path / "secret.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigurationError, match="32 bytes"):
            KeyFile(path).load()

    def test_a_path_that_cannot_hold_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("x")
        for path in (tmp_path, tmp_path / "file" / "secret.key"):
            with pytest.raises(ConfigurationError, match="key file"):
                KeyFile(path).load()

    def test_the_default_lies_in_the_users_configuration(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        assert KeyFile.default().path == tmp_path / "haulier" / "secret.key"
        monkeypatch.delenv("XDG_CONFIG_HOME")
        assert KeyFile.default().path == Path.home() / ".config" / "haulier" / "secret.key"
