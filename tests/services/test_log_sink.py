"""What reaches standard error: no secret, whoever logs and however."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest

CANARY = "k4nary-7f/3a+&x"

LOGGING = f"""
import asyncio, logging, sys, threading
import structlog
from haulier.services.secrets import Scrubber, Secret, scrub_all
from haulier.telemetry import configure_logging

configure_logging("info", sys.argv[1], scrub_all)
log = structlog.get_logger("mine")
with Scrubber():
    secret = Secret({CANARY!r})
    plain = secret.reveal()
    log.info("said " + plain, field=plain, nested={{"a": [plain, {{"b": plain}}]}}, n=7)
    log.info("encoded", raw=plain.encode(), error=ValueError(plain), key={{plain: 1}})
    log.info("named", password="hunter22", api_key=12345, deep=[{{"cookie": "c=hunter22"}}])
    log.info("url", url="http://ann:hunter22@host/")
    try:
        raise LookupError(f"login as ann:{{plain}}") from KeyError(plain)
    except LookupError:
        log.exception("failed")
        logging.getLogger("library").exception("also %s", plain)
    thread = threading.Thread(target=lambda: log.warning("beside", text=plain))
    thread.start()
    thread.join()
    logging.getLogger("library").warning("Authorization: Bearer hunter22hunter22")
    logging.getLogger("library").warning("%d", "no number")
    logging.getLogger("library").info("not said")
log.info("afterwards", n=1, text="plain words", yes=True, nothing=None)
"""


@pytest.mark.parametrize("style", ["console", "json"])
def test_no_secret_leaves_the_process_by_its_logs(style):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, style], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    written = done.stderr
    for secret in (CANARY, "hunter22", base64.b64encode(CANARY.encode()).decode()):
        assert secret not in written
        assert secret[::-1] not in written
    assert "k4nary" not in written
    for said in ("said", "failed", "LookupError", "also", "beside", "afterwards", "plain words"):
        assert said in written
    assert "not said" not in written


def test_events_stay_json_with_their_fields():
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, "json"], capture_output=True, text=True, check=True
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[0]["nested"] == {"a": ["******", {"b": "******"}]}
    assert events[0]["n"] == 7
    assert events[2]["password"] == "******"
    assert events[3]["url"] == "http://******@host/"
    assert events[-1] | {"n": 1, "yes": True, "nothing": None} == events[-1]
    assert {"library"} == {event["logger"] for event in events if "logger" in event}
