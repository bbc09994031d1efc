"""Schemathesis: asks a master for all that its OpenAPI document allows, and for some that it does
not, and looks whether the answers are as documented.

https://schemathesis.readthedocs.io/
"""

import argparse
import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections import deque
from urllib.parse import unquote

import requests
import schemathesis
from roles import say
from schemathesis.cli import schemathesis as command

# How many instances are there at a time: each is a process.
INSTANCES_MAX = 4

TIMEOUT = 30

CONFIG = """
seed = {seed}
max-failures = 20
request-timeout = {timeout}.0
headers = {{ X-API-Key = "{key}" }}
base-url = "{url}"

[generation]
max-examples = {count}
database = "none"

# A stream without an end.
[[operations]]
include-path = "/events"
enabled = false

# Whether a URL will do is more than a pattern can say.
[[operations]]
include-operation-id = ["createInstance", "replaceInstance"]
[operations.checks.positive_data_acceptance]
enabled = false
"""


def install_hooks(url, key):
    """Keeps the key what it is, the instances few, and leads half of what is meant for an instance
    that nobody has made to one that is there."""
    made = deque()
    known = {"********"}
    session = requests.Session()
    session.headers["X-API-Key"] = key
    turn = itertools.count()

    def create():
        body = {"url": "client://127.0.0.1:1/127.0.0.1:2?mode=2"}
        answer = session.post(f"{url}/instances", json=body, timeout=TIMEOUT)
        assert answer.status_code == 201, answer.text
        note(answer.json()["id"])

    def note(instance_id):
        known.add(instance_id)
        made.append(instance_id)
        while len(made) > INSTANCES_MAX:
            session.delete(f"{url}/instances/{made.popleft()}", timeout=TIMEOUT)

    @schemathesis.hook
    def before_call(context, case, kwargs):
        if "id" not in (case.path_parameters or {}):
            return
        # What is special in a path comes escaped.
        instance_id = unquote(str(case.path_parameters["id"]))
        body = case.body if isinstance(case.body, dict) else {}
        if instance_id == "********" and body.get("action"):
            case.path_parameters["id"] = "00000000"
        elif re.fullmatch("[0-9a-f]{8}", instance_id) and instance_id not in known:
            if next(turn) % 2:
                if not made:
                    create()
                case.path_parameters["id"] = made[-1]

    @schemathesis.hook
    def after_call(context, case, response):
        if response.status_code == 201:
            note(response.json()["id"])
        if response.status_code == 204 and case.path_parameters["id"] in made:
            made.remove(case.path_parameters["id"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="of the API, such as http://host/api/v1")
    parser.add_argument("--key", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--examples", type=int, required=True, help="at most, for each operation")
    options = parser.parse_args()
    install_hooks(options.url, options.key)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("schemathesis.toml", "w") as file:
            file.write(
                CONFIG.format(
                    count=options.examples,
                    key=options.key,
                    seed=options.seed,
                    timeout=TIMEOUT,
                    url=options.url,
                )
            )
        status = 0
        with contextlib.redirect_stdout(sys.stderr):
            try:
                command.main(["run", "--no-color", f"{options.url}/openapi.json"])
            except SystemExit as end:
                status = end.code
        assert not status, f"status {status}"
    say("done")


main()
