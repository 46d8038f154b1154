"""Secrets in payloads: sealed when a job is enqueued, opened only where the runner asks.

Sealing is AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce. Kind, field and job id are the
associated data, so a sealed value copied to another field or job does not open.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from haulier.domain.redaction import forms, without, without_credentials
from haulier.domain.sealed import MASK, SEALED
from haulier.exceptions import AuthenticationError, ConfigurationError

SCHEMA_FORMAT = "haulier-secret"
KEY_BYTES = 32
_NONCE_BYTES = 12
_COLLECTED = "$secret"
LOOKED_AT = 64 * 1024
"""Characters of a text in which secrets are looked for: far more than are kept of any, so that none
is cut in two there, and few enough for a text of megabytes not to hold up the worker."""

_DOES_NOT_OPEN = "a sealed secret does not open: it was changed, or moved to another field or job"

_revealed: ContextVar[Scrubber | None] = ContextVar("haulier_revealed", default=None)


class Secret:
    """A payload field whose value must not be seen: a password, a token.

    Annotate a parameter or a model field with it and give a plain string when enqueuing. In the
    task, `reveal()` returns the string; printing, logging or dumping shows asterisks.
    """

    __slots__ = ("_open",)

    def __init__(self, value: str | Callable[[], str]) -> None:
        self._open = value if callable(value) else lambda: value

    def reveal(self) -> str:
        """The plain value. It is masked in this job's errors and log lines from now on."""
        value = self._open()
        scrubber = _revealed.get()
        if scrubber is not None:
            scrubber.saw(value)
        return value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._open() == other._open()

    def __hash__(self) -> int:
        return hash(self._open())

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls._serialize, info_arg=True
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "format": SCHEMA_FORMAT, "writeOnly": True}

    @classmethod
    def _validate(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        # The given value must not be echoed, as pydantic's own errors would do.
        raise PydanticCustomError("secret_type", "a secret must be given as a string")

    def _serialize(self, info: core_schema.SerializationInfo) -> Any:
        collected: list[Secret] | None = (info.context or {}).get(_COLLECTED)
        if collected is None:
            return MASK
        collected.append(self)
        return {_COLLECTED: len(collected) - 1}


class KeyFile:
    """The file that holds the key, made on first use, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls) -> Self:
        """`haulier/secret.key` in the user's configuration folder."""
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return cls(Path(base) / "haulier" / "secret.key")

    def load(self) -> bytes:
        """The key; raises ConfigurationError for a file that others can read or that is no key."""
        try:
            try:
                return self._read()
            except FileNotFoundError:
                self._create()
                return self._read()
        except OSError as error:
            raise ConfigurationError(
                f"the key file {self.path} cannot be used: {error.strerror}"
            ) from error

    def _create(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written aside and linked: of two that start at once one wins, whole.
        draft = self.path.with_name(f"{self.path.name}.{os.urandom(8).hex()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, self.path)
        finally:
            draft.unlink()

    def _read(self) -> bytes:
        with self.path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(200)
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigurationError(
                f"the key file {self.path} can be read by others; run: chmod 600 {self.path}"
            )
        try:
            key = base64.b64decode(text, validate=False)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                f"the key file {self.path} does not hold {KEY_BYTES} bytes in base64"
            )
        return key


class Sealer:
    """Seals and opens the secrets of payloads. The key is loaded when first needed."""

    def __init__(self, load_key: Callable[[], bytes]) -> None:
        self._load_key = load_key
        self._cipher: AESGCM | None = None
        self._key_id = ""

    def seal_tree(self, tree: Any, secrets: list[Secret], *, kind: str, job_id: str) -> Any:
        """The dumped payload with each collected secret replaced by its sealed form.

        Raises ValueError for a payload that holds what looks like a mark of ours.
        """
        waiting: list[Secret | None] = [*secrets]
        return self._walk(tree, "", kind, job_id, waiting)

    def open_tree(self, tree: Any, *, kind: str, job_id: str) -> Any:
        """The stored payload with each sealed form replaced by a Secret that opens itself."""
        return self._walk(tree, "", kind, job_id, None)

    def seal_text(self, value: str, place: str) -> str:
        """A text sealed for one place outside of payloads, such as `webhook/<id>`."""
        return self._seal(value, f"\n{place}".encode())

    def open_text(self, sealed: str, place: str) -> str:
        """What was sealed for that place; raises AuthenticationError for anything else."""
        return self._open(sealed, f"\n{place}".encode())

    def _walk(
        self, node: Any, path: str, kind: str, job_id: str, secrets: list[Secret | None] | None
    ) -> Any:
        if isinstance(node, list):
            return [
                self._walk(item, f"{path}/{index}", kind, job_id, secrets)
                for index, item in enumerate(node)
            ]
        if not isinstance(node, dict):
            return node
        associated = f"{kind}\n{path}\n{job_id}".encode()
        if secrets is not None and node.keys() == {_COLLECTED}:
            return {SEALED: self._seal(_taken(secrets, node[_COLLECTED]).reveal(), associated)}
        if secrets is not None and node.keys() == {SEALED}:
            raise ValueError(f"an object with the only name {SEALED} is reserved")
        if secrets is None and node.keys() == {SEALED}:
            sealed = node[SEALED]
            return Secret(lambda: self._open(sealed, associated))
        return {
            name: self._walk(value, f"{path}/{name}", kind, job_id, secrets)
            for name, value in node.items()
        }

    def _seal(self, value: str, associated: bytes) -> str:
        cipher = self._ready()
        nonce = os.urandom(_NONCE_BYTES)
        box = nonce + cipher.encrypt(nonce, value.encode(), associated)
        return f"1.{self._key_id}.{base64.b64encode(box).decode()}"

    def _open(self, sealed: Any, associated: bytes) -> str:
        cipher = self._ready()
        key_id, box = _unwrapped(sealed)
        if key_id != self._key_id:
            raise AuthenticationError(
                f"this secret was sealed with key {key_id}, this process has key {self._key_id}"
            )
        try:
            return cipher.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], associated).decode()
        except (InvalidTag, ValueError):
            raise AuthenticationError(_DOES_NOT_OPEN) from None

    def _ready(self) -> AESGCM:
        if self._cipher is None:
            key = self._load_key()
            self._key_id = sha256(b"haulier key id\n" + key).hexdigest()[:8]
            self._cipher = AESGCM(key)
        return self._cipher


def _taken(secrets: list[Secret | None], place: Any) -> Secret:
    """The secret that a mark stands for. Each has one mark: another is the payload's own doing."""
    found = secrets[place] if isinstance(place, int) and 0 <= place < len(secrets) else None
    if found is None:
        raise ValueError(f"an object with the only name {_COLLECTED} is reserved")
    secrets[place] = None
    return found


def _unwrapped(sealed: Any) -> tuple[str, bytes]:
    """Key id and box of a sealed text; AuthenticationError for what was never written by us."""
    try:
        version, key_id, text = sealed.split(".")
        box = base64.b64decode(text, validate=True)
    except (AttributeError, ValueError):
        raise AuthenticationError(_DOES_NOT_OPEN) from None
    # Compared, because base64 has several spellings of the same bytes.
    if version != "1" or base64.b64encode(box).decode() != text:
        raise AuthenticationError(_DOES_NOT_OPEN)
    return key_id, box


def collect_into(secrets: list[Secret]) -> dict[str, Any]:
    """The serialisation context in which secrets gather themselves in the given list."""
    return {_COLLECTED: secrets}


def reveal_tree(tree: Any, secrets: list[Secret]) -> Any:
    """The dumped payload with each collected secret replaced by its plain value."""
    if isinstance(tree, list):
        return [reveal_tree(item, secrets) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {_COLLECTED}:
        return secrets[tree[_COLLECTED]].reveal()
    return {name: reveal_tree(value, secrets) for name, value in tree.items()}


class Known:
    """The secrets that are in use in this process, to be masked whoever writes something.

    A library's own task or thread may log what a job gave it. Callable from any thread.
    """

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._forms: dict[str, frozenset[str]] = {}
        self._lock = threading.Lock()

    def hold(self, value: str) -> None:
        """A value is in use once more."""
        with self._lock:
            self._uses[value] = self._uses.get(value, 0) + 1

    def release(self, values: Iterable[str]) -> None:
        """Values are in use once less; they are forgotten when nobody uses them."""
        with self._lock:
            for value in values:
                left = self._uses.get(value, 0) - 1
                if left > 0:
                    self._uses[value] = left
                else:
                    self._uses.pop(value, None)
                    self._forms.pop(value, None)

    def mask(self, text: str) -> str:
        """The text with every value in use masked, in whatever form it stands there."""
        if not self._uses:
            return text
        with self._lock:
            for value in self._uses:
                if value not in self._forms:
                    # Only now: most secrets are never looked for.
                    self._forms[value] = forms(value)
            found = [form for known in self._forms.values() for form in known]
        return without(text, found)


_known = Known()


class Scrubber:
    """Remembers which secrets were revealed within a block and masks them in texts.

    While the block lasts they are masked in all that this process logs.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._open = False

    def __enter__(self) -> Self:
        self._token = _revealed.set(self)
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        _revealed.reset(self._token)
        self._open = False
        if self._seen:
            _known.release(self._seen)

    def saw(self, value: str) -> None:
        """A value was revealed."""
        # A thread that goes on after its job may still come here: nobody would release it.
        if value not in self._seen and self._open:
            _known.hold(value)
        self._seen.add(value)

    def scrub(self, text: str) -> str:
        """The text with every revealed value masked, and what else stands where credentials do."""
        return scrub(text, self._seen)


def scrub(text: str, values: Iterable[str] = ()) -> str:
    """The text without the given secrets, and without what stands where credentials do."""
    return without_credentials(without(text, [form for value in values for form in forms(value)]))


def scrub_current(text: str) -> str:
    """The text as it is kept with the running job: without what this job has revealed.

    Those of others stay: a job could else try values and see which of them are masked.
    """
    scrubber = _revealed.get()
    return scrub(text) if scrubber is None else scrubber.scrub(text)


def scrub_all(text: str) -> str:
    """The text as this process may log it: without any secret that is in use here."""
    return without_credentials(_known.mask(text))
