"""Checks with a name, run one after the other; the last line is `N passed, N failed`."""

import hashlib
import json
import random
import sys
import time
import traceback

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

CHECKS = []


def check(function):
    """Makes a function a check; its name is the claim."""
    CHECKS.append(function)
    return function


class Cluster:
    """What `ashlar demo --json` printed, and clients for it."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
        self.endpoints = facts["endpoints"]
        self.access_key = facts["access_key"]
        self.secret_key = facts["secret_key"]
        self.region = facts["region"]
        self.nodes = facts["nodes"]

    def client(self, gateway=0, **changes):
        """A boto3 client of one gateway that never retries: a retry would hide what is tested."""
        settings = {
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": self.region,
            "endpoint_url": self.endpoints[gateway % len(self.endpoints)],
        }
        config = {
            "s3": {"addressing_style": "path"},
            "signature_version": "s3v4",
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 64,
            "read_timeout": 60,
        }
        config.update(changes.pop("config", {}))
        settings.update(changes)
        return boto3.client("s3", config=Config(**config), **settings)


def content(name, size):
    """Bytes that belong to a name, the same in each run."""
    return random.Random(name).randbytes(size)


def md5(data):
    """The ETag of an object that was put whole."""
    return '"' + hashlib.md5(data).hexdigest() + '"'


def equal(seen, wanted, what="value"):
    """Fails with both sides, cut short."""
    if seen != wanted:
        raise AssertionError(f"{what}: {str(seen)[:300]!r} instead of {str(wanted)[:300]!r}")


def refused(status, code, call, *args, **kwargs):
    """The call must be answered with this status and S3 code; returns the error for a closer look."""
    try:
        call(*args, **kwargs)
    except ClientError as error:
        seen = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        codes = code if isinstance(code, tuple) else (code,)
        if seen[0] != status or seen[1] not in codes:
            raise AssertionError(f"refused with {seen} instead of {(status, code)}: {error}") from None
        return error
    raise AssertionError(f"succeeded instead of {status} {code}")


def main():
    """Runs the checks whose name contains the second argument, or all."""
    cluster = Cluster(sys.argv[1])
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    passed = failed = 0
    for function in CHECKS:
        if word not in function.__name__:
            continue
        began = time.monotonic()
        name = function.__name__.replace("_", " ")
        try:
            function(cluster)
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            line = traceback.extract_tb(error.__traceback__)[1:2]
            place = f" (line {line[0].lineno})" if line else ""
            print(f"FAIL {name}{place}: {type(error).__name__}: {str(error)[:600]}")
        else:
            passed += 1
            print(f"PASS {name} in {time.monotonic() - began:.1f} s")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
