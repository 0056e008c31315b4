"""What a user of the AWS CLI (version 1) sees of a cluster. Run: cli.py DEMO.json [WORD]"""

import json
import os
import subprocess
import sys
import tempfile

from suite import check, content, equal, main, md5

MIB = 1024 * 1024
AWS = os.path.join(os.path.dirname(sys.executable), "aws")


# The CLI would sign addresses by the older version 2, which ashlar does not speak.
CONFIG = tempfile.NamedTemporaryFile("w", suffix=".cfg")  # pylint: disable=consider-using-with
CONFIG.write("[default]\ns3 =\n    signature_version = s3v4\n    addressing_style = path\n")
CONFIG.flush()


def aws(cluster, *words, gateway=0, fails=False, attempts=1):
    """Runs the CLI; its standard output. With `fails`, its complaint."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": tempfile.gettempdir(),
        "AWS_ACCESS_KEY_ID": cluster.access_key,
        "AWS_SECRET_ACCESS_KEY": cluster.secret_key,
        "AWS_DEFAULT_REGION": cluster.region,
        "AWS_MAX_ATTEMPTS": str(attempts),
        "AWS_CONFIG_FILE": CONFIG.name,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    command = [sys.executable, AWS, "--endpoint-url", cluster.endpoints[gateway], *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if (done.returncode != 0) != fails:
        raise AssertionError(f"aws {' '.join(words)} ended with {done.returncode}: {done.stderr[:400]}")
    return done.stderr if fails else done.stdout


@check
def a_tree_is_synced_up_and_down(cluster):
    aws(cluster, "s3", "mb", "s3://cli-sync")
    with tempfile.TemporaryDirectory() as directory:
        up, down = os.path.join(directory, "up"), os.path.join(directory, "down")
        for name, size in [("a", 0), ("b/c", 1), ("b/d e", 8192), ("b/f", 65536), ("g", 9 * MIB)]:
            path = os.path.join(up, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content(name, size))
            os.utime(path, (1_500_000_000, 1_500_000_000))  # older than any upload: sync compares times
        aws(cluster, "s3", "sync", up, "s3://cli-sync/tree", "--only-show-errors")
        aws(cluster, "s3", "sync", "s3://cli-sync/tree", down, "--only-show-errors", gateway=1)
        equal(subprocess.run(["diff", "-r", up, down], capture_output=True, check=False).stdout, b"", "difference")
        equal(aws(cluster, "s3", "sync", up, "s3://cli-sync/tree"), "", "a second sync has nothing to do")
    lines = [line.split()[-1] for line in aws(cluster, "s3", "ls", "s3://cli-sync/tree/").splitlines()]
    equal(lines, ["b/", "a", "g"], "ls")
    aws(cluster, "s3", "rm", "--recursive", "s3://cli-sync", "--only-show-errors")
    aws(cluster, "s3", "rb", "s3://cli-sync")


@check
def a_hundred_mebibytes_are_copied_in_parts(cluster):
    aws(cluster, "s3", "mb", "s3://cli-large")
    with tempfile.TemporaryDirectory() as directory:
        path, back = os.path.join(directory, "up"), os.path.join(directory, "down")
        data = content("large", 100 * MIB)
        with open(path, "wb") as file:
            file.write(data)
        aws(cluster, "s3", "cp", path, "s3://cli-large/it", "--only-show-errors")
        aws(cluster, "s3", "cp", "s3://cli-large/it", "s3://cli-large/copy", "--only-show-errors", gateway=1)
        aws(cluster, "s3", "cp", "s3://cli-large/copy", back, "--only-show-errors")
        with open(back, "rb") as file:
            assert file.read() == data, "the bytes differ"


@check
def the_s3api_puts_conditionally_and_says_why_not(cluster):
    aws(cluster, "s3api", "create-bucket", "--bucket", "cli-api")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"first")
        file.flush()
        put = ["s3api", "put-object", "--bucket", "cli-api", "--key", "k", "--body", file.name]
        equal(json.loads(aws(cluster, *put, "--if-none-match", "*"))["ETag"], md5(b"first"), "ETag")
        complaint = aws(cluster, *put, "--if-none-match", "*", fails=True)
        assert "PreconditionFailed" in complaint, complaint
    head = json.loads(aws(cluster, "s3api", "head-object", "--bucket", "cli-api", "--key", "k", gateway=1))
    equal(head["ContentLength"], 5, "length")
    complaint = aws(cluster, "s3api", "get-object", "--bucket", "cli-api", "--key", "nothing", os.devnull, fails=True)
    assert "NoSuchKey" in complaint, complaint


@check
def the_s3api_lists_the_versions_of_a_key(cluster):
    aws(cluster, "s3", "mb", "s3://cli-versions")
    enable = ["s3api", "put-bucket-versioning", "--bucket", "cli-versions", "--versioning-configuration", "Status=Enabled"]
    aws(cluster, *enable, attempts=10)  # 503 until the nodes have agreed, soon after their start, that all can
    put = ["s3api", "put-object", "--bucket", "cli-versions", "--key", "k", "--query", "VersionId", "--output", "text"]
    written = [aws(cluster, *put).strip() for _ in range(2)]
    ask = ["s3api", "list-object-versions", "--bucket", "cli-versions", "--query", "Versions[].VersionId"]
    equal(json.loads(aws(cluster, *ask, gateway=1)), written[::-1], "versions")


@check
def a_presigned_address_works_without_keys(cluster):
    aws(cluster, "s3", "mb", "s3://cli-presign")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"for everyone")
        file.flush()
        aws(cluster, "s3", "cp", file.name, "s3://cli-presign/it", "--only-show-errors")
    address = aws(cluster, "s3", "presign", "s3://cli-presign/it", "--expires-in", "60").strip()
    fetched = subprocess.run(
        [sys.executable, "-c", "import sys,urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())", address],
        capture_output=True,
        check=True,
    )
    equal(fetched.stdout, b"for everyone", "bytes")


if __name__ == "__main__":
    main()
