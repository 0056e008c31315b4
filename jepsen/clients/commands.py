"""What an operator sees of a cluster with the ashlar command. Run: commands.py DEMO.json [WORD]"""

import json
import os
import subprocess

from suite import check, equal, main

ASHLAR = os.path.abspath("target/debug/ashlar")


def ashlar(cluster, *words, member=None, fails=False):
    """Runs the command against the first node or `member`; its standard output. With `fails`, its complaint."""
    command = [ASHLAR, *words, "--member", member or cluster.nodes[0]["config"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if (done.returncode != 0) != fails:
        raise AssertionError(f"ashlar {' '.join(words)} ended with {done.returncode}: {done.stderr[:400]}")
    return done.stderr if fails else done.stdout


@check
def all_nodes_and_disks_are_shown(cluster):
    nodes = json.loads(ashlar(cluster, "node", "ls", "--json"))
    equal([node["state"] for node in nodes], ["up"] * 6, "states of nodes")
    equal([node["disks"] for node in nodes], [2] * 6, "disks of nodes")
    disks = json.loads(ashlar(cluster, "disk", "ls", "--json"))
    equal([disk["state"] for disk in disks], ["healthy"] * 12, "states of disks")
    shown = {disk["directory"] for disk in disks}
    equal(shown, {path for node in cluster.nodes for path in node["dirs"][1:]}, "directories")
    assert all(disk["slots"] > 0 for disk in disks), "every disk is home to some slots"


@check
def tables_have_a_line_for_each(cluster):
    equal(len(ashlar(cluster, "node", "ls").splitlines()), 7, "lines of nodes")
    equal(len(ashlar(cluster, "disk", "ls").splitlines()), 13, "lines of disks")


@check
def the_ranges_leave_no_key_out(cluster):
    ranges = json.loads(ashlar(cluster, "range", "ls", "--json"))
    starts = [line["from"] for line in ranges]
    ends = [line["to"] for line in ranges]
    equal([starts[0], ends[-1]], [None, None], "outer edges of the key space")
    equal(ends[:-1], starts[1:], "each range ends where the next one begins")
    equal([len(line["voters"]) for line in ranges], [3] * len(ranges), "voters of ranges")
    equal(len(ashlar(cluster, "range", "ls").splitlines()), len(ranges) + 1, "lines of ranges")


@check
def a_disk_is_drained_and_used_again(cluster):
    disk = json.loads(ashlar(cluster, "disk", "ls", "--json"))[0]["disk"]
    planned = json.loads(ashlar(cluster, "disk", "drain", disk, "--dry-run", "--json"))
    assert planned["slots"] > 0 and not planned["done"], planned
    equal(state_of(cluster, disk), "healthy", "state behind a dry run")
    assert json.loads(ashlar(cluster, "disk", "drain", disk, "--json"))["done"]
    assert state_of(cluster, disk) in ("draining", "drained")
    complaint = ashlar(cluster, "disk", "remove", "no-such-disk", fails=True)
    assert "no-such-disk" in complaint, complaint
    ashlar(cluster, "disk", "undrain", disk)
    equal(state_of(cluster, disk), "healthy", "state of a disk that is used again")
    complaint = ashlar(cluster, "disk", "remove", disk, fails=True)
    assert "drain it first" in complaint, complaint


def state_of(cluster, disk):
    disks = json.loads(ashlar(cluster, "disk", "ls", "--json"))
    return next(line["state"] for line in disks if line["disk"] == disk)


@check
def who_is_no_member_is_told_so(cluster):
    complaint = ashlar(cluster, "disk", "ls", member="/nowhere", fails=True)
    assert "/nowhere" in complaint, complaint


if __name__ == "__main__":
    main()
