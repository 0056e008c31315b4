"""What boto3 sees of buckets that keep versions. Run: versions.py DEMO.json [WORD]"""

import time
from concurrent.futures import ThreadPoolExecutor

from botocore.exceptions import ClientError

from suite import check, content, equal, main, md5, refused

MIB = 1024 * 1024
OF_NOTHING = "0" * 15 + "abc" + "0" * 14
READY_SECONDS_MAX = 60


def versioned(cluster, name, status="Enabled"):
    """A client, and a new bucket that keeps versions."""
    s3 = cluster.client()
    s3.create_bucket(Bucket=name)
    set_versioning(s3, name, status)
    return s3


def set_versioning(s3, name, status):
    """The one call that is repeated: it is answered 503 until the nodes have agreed, soon after their start, that all can."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
            return
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def put(s3, name, key, body):
    """The id of the version that it became."""
    return s3.put_object(Bucket=name, Key=key, Body=body)["VersionId"]


def read(s3, name, key, version=None):
    """The bytes of a version, and which it is."""
    which = {"VersionId": version} if version else {}
    answer = s3.get_object(Bucket=name, Key=key, **which)
    return answer["Body"].read(), answer.get("VersionId")


def listed(s3, name, **parameters):
    """All versions, delete markers and common prefixes, page after page, in the order in which they come."""
    seen = []
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=name, **parameters):
        entries = [(v["Key"], v["VersionId"], "object", v["IsLatest"]) for v in page.get("Versions", [])]
        entries += [(m["Key"], m["VersionId"], "marker", m["IsLatest"]) for m in page.get("DeleteMarkers", [])]
        entries += [(prefix["Prefix"], None, "prefix", None) for prefix in page.get("CommonPrefixes", [])]
        seen += entries
    return seen


@check
def a_bucket_is_told_to_keep_versions_and_to_stop(cluster):
    s3, name = cluster.client(), "versions-told"
    s3.create_bucket(Bucket=name)
    equal(s3.get_bucket_versioning(Bucket=name).get("Status"), None, "at first")
    equal(s3.put_object(Bucket=name, Key="k", Body=b"x").get("VersionId"), None, "version id without versions")
    for status in ("Enabled", "Suspended", "Enabled"):
        set_versioning(s3, name, status)
        for gateway in (0, 1):
            equal(cluster.client(gateway).get_bucket_versioning(Bucket=name)["Status"], status, "status")
    wrong = {"Status": "Off"}
    refused(400, "MalformedXML", s3.put_bucket_versioning, Bucket=name, VersioningConfiguration=wrong)
    mfa = {"Status": "Enabled", "MFADelete": "Enabled"}
    refused(501, "NotImplemented", s3.put_bucket_versioning, Bucket=name, VersioningConfiguration=mfa)


@check
def what_is_overwritten_is_read_by_its_id_through_the_other_gateway(cluster):
    s3, other, name = versioned(cluster, "versions-read"), cluster.client(1), "versions-read"
    bodies = [content(f"version-{size}", size) for size in (0, 100, 70_000, 3 * MIB)]
    ids = [put(s3, name, "k", body) for body in bodies]
    equal(len(set(ids)), len(bodies), "different ids")
    for version, body in zip(ids, bodies):
        got, shown = read(other, name, "k", version)
        assert got == body, f"the bytes of {version} differ"
        equal(shown, version, "x-amz-version-id")
        head = other.head_object(Bucket=name, Key="k", VersionId=version)
        equal((head["ETag"], head["ContentLength"], head["VersionId"]), (md5(body), len(body), version), "HEAD")
    equal(read(other, name, "k")[1], ids[-1], "the newest")
    part = s3.get_object(Bucket=name, Key="k", VersionId=ids[2], Range="bytes=10-19")
    equal(part["Body"].read(), bodies[2][10:20], "a range of a version")
    refused(404, "NoSuchVersion", s3.get_object, Bucket=name, Key="k", VersionId=OF_NOTHING)
    refused(404, "NoSuchVersion", s3.get_object, Bucket=name, Key="other", VersionId=ids[0])
    refused(400, "InvalidArgument", s3.get_object, Bucket=name, Key="k", VersionId="nonsense")


@check
def a_delete_marker_hides_a_key_until_it_is_deleted(cluster):
    s3, other, name = versioned(cluster, "versions-marker"), cluster.client(1), "versions-marker"
    version = put(s3, name, "k", b"kept")
    deleted = s3.delete_object(Bucket=name, Key="k")
    equal(deleted["DeleteMarker"], True, "a delete marker is made")
    marker = deleted["VersionId"]
    hidden = refused(404, "NoSuchKey", other.get_object, Bucket=name, Key="k").response["ResponseMetadata"]["HTTPHeaders"]
    equal((hidden["x-amz-delete-marker"], hidden["x-amz-version-id"]), ("true", marker), "headers")
    refused(404, "404", other.head_object, Bucket=name, Key="k")
    named = refused(405, "MethodNotAllowed", other.get_object, Bucket=name, Key="k", VersionId=marker)
    equal(named.response["ResponseMetadata"]["HTTPHeaders"]["allow"], "DELETE", "what is allowed")
    equal(s3.list_objects_v2(Bucket=name)["KeyCount"], 0, "keys")
    equal(read(other, name, "k", version)[0], b"kept", "beneath the marker")
    refused(404, "NoSuchKey", s3.copy_object, Bucket=name, Key="c", CopySource={"Bucket": name, "Key": "k"})
    removed = other.delete_object(Bucket=name, Key="k", VersionId=marker)
    equal((removed["DeleteMarker"], removed["VersionId"]), (True, marker), "the marker is deleted")
    equal(read(s3, name, "k"), (b"kept", version), "back again")
    refused(501, "NotImplemented", s3.delete_object, Bucket=name, Key="k", VersionId=version, IfMatch=md5(b"kept"))
    for _ in range(2):
        s3.delete_object(Bucket=name, Key="k", VersionId=version)
    refused(404, "NoSuchKey", other.get_object, Bucket=name, Key="k")
    refused(404, "NoSuchVersion", other.get_object, Bucket=name, Key="k", VersionId=version)
    equal(listed(s3, name), [], "left")


@check
def an_older_version_is_restored_by_a_copy(cluster):
    s3, name = versioned(cluster, "versions-copy"), "versions-copy"
    bodies = [content("restored", 200_000), b"new"]
    old, new = [put(s3, name, "k", body) for body in bodies]
    source = {"Bucket": name, "Key": "k", "VersionId": old}
    copied = s3.copy_object(Bucket=name, Key="k", CopySource=source)
    equal(copied["CopySourceVersionId"], old, "what it came from")
    assert read(s3, name, "k") == (bodies[0], copied["VersionId"]), "the older version is not restored"
    newest = s3.copy_object(Bucket=name, Key="elsewhere", CopySource={"Bucket": name, "Key": "k"})
    equal(newest["CopySourceVersionId"], copied["VersionId"], "the newest is copied")
    replaced = {"MetadataDirective": "REPLACE", "Metadata": {"colour": "red"}}
    said = s3.copy_object(Bucket=name, Key="k", CopySource={"Bucket": name, "Key": "k"}, **replaced)["VersionId"]
    equal(s3.head_object(Bucket=name, Key="k")["Metadata"], {"colour": "red"}, "replaced")
    equal([entry[1] for entry in listed(s3, name, Prefix="k")], [said, copied["VersionId"], new, old], "all are kept")
    equal(read(s3, name, "k", new), (b"new", new), "what was between")


@check
def a_key_has_one_null_version(cluster):
    s3, name = cluster.client(), "versions-null"
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="k", Body=b"before")
    set_versioning(s3, name, "Enabled")
    equal(read(s3, name, "k"), (b"before", "null"), "written before")
    kept = put(s3, name, "k", b"kept")
    equal(read(cluster.client(1), name, "k", "null"), (b"before", "null"), "under a newer one")
    set_versioning(s3, name, "Suspended")
    equal(put(s3, name, "k", b"after"), "null", "written while suspended")
    equal(put(s3, name, "k", b"after all"), "null", "written again")
    equal([entry[1] for entry in listed(s3, name)], ["null", kept], "versions")
    deleted = s3.delete_object(Bucket=name, Key="k")
    equal((deleted["DeleteMarker"], deleted["VersionId"]), (True, "null"), "deleted while suspended")
    equal(listed(s3, name), [("k", kept, "object", False), ("k", "null", "marker", True)], "versions")
    s3.delete_object(Bucket=name, Key="k", VersionId="null")
    equal(read(s3, name, "k"), (b"kept", kept), "what was kept")


@check
def every_version_is_listed_once_whatever_the_size_of_pages(cluster):
    s3, name = versioned(cluster, "versions-list"), "versions-list"
    ids = {key: [put(s3, name, key, b"x") for _ in range(3)][::-1] for key in ("a", "b c", "dir/x", "dir/y")}
    marker = s3.delete_object(Bucket=name, Key="a")["VersionId"]
    last = put(s3, name, "a", b"again")
    a = [last, marker, *ids["a"]]
    kind = lambda key, at: "marker" if (key, at) == ("a", 1) else "object"
    of_keys = lambda keys: [(key, v, kind(key, at), at == 0) for key in keys for at, v in enumerate(a if key == "a" else ids[key])]
    flat = of_keys(ids)
    rolled = of_keys(["a", "b c"]) + [("dir/", None, "prefix", None)]
    for size in (1, 2):
        pages = {"PaginationConfig": {"PageSize": size}}
        equal(sorted(listed(s3, name, **pages), key=flat.index), flat, f"pages of {size}: all of them")
        equal(sorted(listed(s3, name, Delimiter="/", **pages), key=rolled.index), rolled, f"pages of {size}, rolled up")
    equal(listed(s3, name, PaginationConfig={"PageSize": 1}), flat, "one by one: in order")
    equal(listed(s3, name, Delimiter="/", PaginationConfig={"PageSize": 1}), rolled, "one by one, rolled up: in order")
    equal(listed(s3, name, Prefix="dir/", KeyMarker="dir/x"), of_keys(["dir/y"]), "behind a key")
    behind = s3.list_object_versions(Bucket=name, KeyMarker="b c", VersionIdMarker=ids["b c"][1], MaxKeys=1)
    equal([v["VersionId"] for v in behind["Versions"]], [ids["b c"][2]], "behind a version")
    refused(400, "InvalidArgument", s3.list_object_versions, Bucket=name, VersionIdMarker=last)
    refused(400, "InvalidArgument", s3.list_object_versions, Bucket=name, KeyMarker="a", VersionIdMarker="x")


@check
def versions_and_markers_are_deleted_many_at_once_and_then_the_bucket(cluster):
    s3, name = versioned(cluster, "versions-many"), "versions-many"
    a, b = put(s3, name, "a", b"x"), put(s3, name, "b", b"x")
    marked = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "a"}, {"Key": "none"}]})["Deleted"]
    equal([(entry["Key"], entry["DeleteMarker"]) for entry in marked], [("a", True), ("none", True)], "marked")
    markers = [entry["DeleteMarkerVersionId"] for entry in marked]
    doomed = [("a", markers[0]), ("a", a), ("b", b), ("b", OF_NOTHING), ("b", "nonsense")]
    objects = [{"Key": key, "VersionId": version} for key, version in doomed]
    answer = s3.delete_objects(Bucket=name, Delete={"Objects": objects})
    gone = [(e["Key"], e["VersionId"], e.get("DeleteMarkerVersionId")) for e in answer["Deleted"]]
    equal(gone, [("a", markers[0], markers[0]), ("a", a, None), ("b", b, None), ("b", OF_NOTHING, None)], "deleted")
    equal([(e["Key"], e["Code"]) for e in answer["Errors"]], [("b", "InvalidArgument")], "errors")
    equal(listed(s3, name), [("none", markers[1], "marker", True)], "left")
    refused(409, "BucketNotEmpty", s3.delete_bucket, Bucket=name)
    s3.delete_object(Bucket=name, Key="none", VersionId=markers[1])
    s3.delete_bucket(Bucket=name)


@check
def a_multipart_upload_becomes_a_version_and_parts_are_copied_from_versions(cluster):
    s3, name = versioned(cluster, "versions-parts"), "versions-parts"
    data = content("version-part", 5 * MIB)
    old = put(s3, name, "k", data)
    put(s3, name, "k", b"new")
    upload = s3.create_multipart_upload(Bucket=name, Key="k")["UploadId"]
    where = {"Bucket": name, "Key": "k", "UploadId": upload}
    source = {"Bucket": name, "Key": "k", "VersionId": old}
    copied = s3.upload_part_copy(PartNumber=1, CopySource=source, **where)
    equal(copied["CopySourceVersionId"], old, "what the part came from")
    last = s3.upload_part(PartNumber=2, Body=b"tail", **where)
    parts = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}, {"PartNumber": 2, "ETag": last["ETag"]}]
    made = s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **where)["VersionId"]
    again = cluster.client(1).complete_multipart_upload(MultipartUpload={"Parts": parts}, **where)["VersionId"]
    equal(again, made, "a repeated Complete (C10)")
    put(s3, name, "k", b"newer")
    assert read(cluster.client(1), name, "k", made)[0] == data + b"tail", "the bytes of both parts differ"
    part = s3.get_object(Bucket=name, Key="k", VersionId=made, PartNumber=2)
    equal((part["Body"].read(), part["PartsCount"]), (b"tail", 2), "a part of a version")


@check
def conditions_are_judged_on_the_newest_version(cluster):
    s3, name = versioned(cluster, "versions-conditions"), "versions-conditions"
    put(s3, name, "k", b"one")
    refused(412, "PreconditionFailed", s3.put_object, Bucket=name, Key="k", Body=b"two", IfNoneMatch="*")
    s3.put_object(Bucket=name, Key="k", Body=b"two", IfMatch=md5(b"one"))
    refused(412, "PreconditionFailed", s3.put_object, Bucket=name, Key="k", Body=b"three", IfMatch=md5(b"one"))
    s3.delete_object(Bucket=name, Key="k")
    refused(404, "NoSuchKey", s3.put_object, Bucket=name, Key="k", Body=b"three", IfMatch=md5(b"two"))
    s3.put_object(Bucket=name, Key="k", Body=b"three", IfNoneMatch="*")
    equal(len(listed(s3, name)), 4, "versions and markers")


@check
def of_racing_writers_each_leaves_a_version(cluster):
    s3, name = versioned(cluster, "versions-race"), "versions-race"
    gateways = [cluster.client(0), cluster.client(1)]
    with ThreadPoolExecutor(16) as pool:
        bodies = [str(number).encode() for number in range(40)]
        written = list(pool.map(lambda at: put(gateways[at % 2], name, "k", bodies[at]), range(len(bodies))))
    seen = listed(s3, name)
    equal(sorted(entry[1] for entry in seen), sorted(written), "versions")
    equal([entry[3] for entry in seen], [True] + [False] * (len(bodies) - 1), "the newest is the first")
    equal(read(s3, name, "k")[1], seen[0][1], "the newest")
    for version, body in zip(written, bodies):
        equal(read(s3, name, "k", version)[0], body, "bytes")


if __name__ == "__main__":
    main()
