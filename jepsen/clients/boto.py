"""What boto3 sees of a cluster. Run: boto.py DEMO.json [WORD]"""

import base64
import hashlib
import http.client
import io
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

import raw
from suite import check, content, equal, main, md5, refused

BUCKET = "boto"
MIB = 1024 * 1024
SIZES = [0, 1, 8 * 1024, 8 * 1024 + 1, 64 * 1024, 64 * 1024 + 1, MIB, 100 * MIB]


def bucket(cluster, name=BUCKET):
    """A client of a bucket that exists."""
    s3 = cluster.client()
    try:
        s3.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
            raise
    return s3


@check
def buckets_are_made_found_listed_and_removed(cluster):
    s3 = cluster.client()
    s3.create_bucket(Bucket="short-lived")
    s3.head_bucket(Bucket="short-lived")
    equal(s3.get_bucket_location(Bucket="short-lived")["LocationConstraint"], None, "location")
    names = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    equal(names.count("short-lived"), 1, "times in the list of buckets")
    s3.put_object(Bucket="short-lived", Key="k", Body=b"x")
    refused(409, "BucketNotEmpty", s3.delete_bucket, Bucket="short-lived")
    s3.delete_object(Bucket="short-lived", Key="k")
    s3.delete_bucket(Bucket="short-lived")
    refused(404, "404", s3.head_bucket, Bucket="short-lived")
    refused(404, "NoSuchBucket", cluster.client(1).list_objects_v2, Bucket="short-lived")


@check
def objects_of_all_sizes_come_back_through_the_other_gateway(cluster):
    s3 = bucket(cluster)
    other = cluster.client(1)
    for size in SIZES:
        data = content(f"size-{size}", size)
        etag = s3.put_object(Bucket=BUCKET, Key=f"size/{size}", Body=data)["ETag"]
        equal(etag, md5(data), f"ETag of {size} bytes")
        head = other.head_object(Bucket=BUCKET, Key=f"size/{size}")
        equal((head["ContentLength"], head["ETag"]), (size, etag), "HEAD")
        got = other.get_object(Bucket=BUCKET, Key=f"size/{size}")["Body"].read()
        equal(len(got), size, "bytes")
        assert got == data, f"the bytes of {size} differ"


@check
def ranges_are_slices(cluster):
    s3 = bucket(cluster)
    size = 3 * MIB + 12345
    data = content("range", size)
    s3.put_object(Bucket=BUCKET, Key="range", Body=data)
    spans = [(0, 0), (0, 99), (size - 1, size - 1), (65535, 65537), (262143, 262145), (MIB - 1, MIB), (MIB, 2 * MIB), (5, size - 1)]
    for first, last in spans:
        answer = s3.get_object(Bucket=BUCKET, Key="range", Range=f"bytes={first}-{last}")
        equal(answer["ResponseMetadata"]["HTTPStatusCode"], 206, "status")
        equal(answer["ContentRange"], f"bytes {first}-{last}/{size}", "Content-Range")
        assert answer["Body"].read() == data[first : last + 1], f"bytes {first}-{last} differ"
    assert s3.get_object(Bucket=BUCKET, Key="range", Range="bytes=-100")["Body"].read() == data[-100:]
    assert s3.get_object(Bucket=BUCKET, Key="range", Range=f"bytes={size - 7}-")["Body"].read() == data[-7:]
    refused(416, "InvalidRange", s3.get_object, Bucket=BUCKET, Key="range", Range=f"bytes={size}-")
    several = s3.get_object(Bucket=BUCKET, Key="range", Range="bytes=0-1,5-6")
    equal((several["ResponseMetadata"]["HTTPStatusCode"], several["ContentLength"]), (200, size), "several ranges")
    several["Body"].close()


@check
def a_multipart_upload_of_three_parts_up_and_ranges_down(cluster):
    s3, other = bucket(cluster), cluster.client(1)
    parts = [content(f"part-{number}", size) for number, size in enumerate([5 * MIB, 6 * MIB + 1, 1234])]
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="multi", ContentType="text/x-multi", Metadata={"who": "me"})["UploadId"]
    uploads = s3.list_multipart_uploads(Bucket=BUCKET, Prefix="multi")["Uploads"]
    equal([entry["UploadId"] for entry in uploads], [upload], "uploads in progress")
    done = []
    for number, part in reversed(list(enumerate(parts, 1))):
        gateway = s3 if number % 2 else other
        etag = gateway.upload_part(Bucket=BUCKET, Key="multi", UploadId=upload, PartNumber=number, Body=part)["ETag"]
        equal(etag, md5(part), f"ETag of part {number}")
        done.insert(0, {"PartNumber": number, "ETag": etag})
    listed = other.list_parts(Bucket=BUCKET, Key="multi", UploadId=upload)["Parts"]
    equal([(part["PartNumber"], part["Size"]) for part in listed], [(n, len(p)) for n, p in enumerate(parts, 1)], "parts")
    refused(404, "NoSuchKey", s3.get_object, Bucket=BUCKET, Key="multi")
    answer = s3.complete_multipart_upload(Bucket=BUCKET, Key="multi", UploadId=upload, MultipartUpload={"Parts": done})
    wanted = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    equal(answer["ETag"], f'"{wanted}-3"', "ETag of the whole")
    again = other.complete_multipart_upload(Bucket=BUCKET, Key="multi", UploadId=upload, MultipartUpload={"Parts": done})
    equal(again["ETag"], answer["ETag"], "a repeated Complete (C10)")
    whole = b"".join(parts)
    got = other.get_object(Bucket=BUCKET, Key="multi")
    equal((got["ContentType"], got["Metadata"]), ("text/x-multi", {"who": "me"}), "headers")
    assert got["Body"].read() == whole
    for first, last in [(0, 10), (5 * MIB - 3, 5 * MIB + 3), (11 * MIB - 1, 11 * MIB + 2), (len(whole) - 1235, len(whole) - 1)]:
        assert s3.get_object(Bucket=BUCKET, Key="multi", Range=f"bytes={first}-{last}")["Body"].read() == whole[first : last + 1]
    second = s3.get_object(Bucket=BUCKET, Key="multi", PartNumber=2)
    equal((second["PartsCount"], second["ContentLength"]), (3, len(parts[1])), "partNumber=2")
    assert second["Body"].read() == parts[1]


@check
def a_multipart_upload_is_aborted_and_bad_completes_are_refused(cluster):
    s3 = bucket(cluster)
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="never")["UploadId"]
    small = [s3.upload_part(Bucket=BUCKET, Key="never", UploadId=upload, PartNumber=n, Body=b"small")["ETag"] for n in (1, 2)]
    complete = lambda parts: s3.complete_multipart_upload(
        Bucket=BUCKET, Key="never", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": n, "ETag": e} for n, e in parts]}
    )
    refused(400, "EntityTooSmall", complete, [(1, small[0]), (2, small[1])])
    refused(400, "InvalidPart", complete, [(1, small[0]), (3, small[1])])
    refused(400, "InvalidPart", complete, [(1, md5(b"other"))])
    refused(400, "InvalidPartOrder", complete, [(2, small[1]), (1, small[0])])
    empty = raw.send(cluster, "POST", f"/{BUCKET}/never?uploadId={upload}", body=b"<CompleteMultipartUpload/>")
    equal((empty.status, empty.code), (400, "MalformedXML"), "an empty Complete")
    s3.abort_multipart_upload(Bucket=BUCKET, Key="never", UploadId=upload)
    refused(404, "NoSuchUpload", s3.list_parts, Bucket=BUCKET, Key="never", UploadId=upload)
    refused(404, "NoSuchUpload", s3.upload_part, Bucket=BUCKET, Key="never", UploadId=upload, PartNumber=1, Body=b"x")
    refused(404, "NoSuchKey", s3.get_object, Bucket=BUCKET, Key="never")


@check
def parts_are_copied_from_objects(cluster):
    s3 = bucket(cluster)
    data = content("part-source", 6 * MIB)
    s3.put_object(Bucket=BUCKET, Key="part-source", Body=data)
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="part-copy")["UploadId"]
    source = {"Bucket": BUCKET, "Key": "part-source"}
    one = s3.upload_part_copy(Bucket=BUCKET, Key="part-copy", UploadId=upload, PartNumber=1, CopySource=source)
    two = s3.upload_part_copy(
        Bucket=BUCKET, Key="part-copy", UploadId=upload, PartNumber=2, CopySource=source, CopySourceRange="bytes=10-1000009"
    )
    parts = [{"PartNumber": n, "ETag": part["CopyPartResult"]["ETag"]} for n, part in [(1, one), (2, two)]]
    s3.complete_multipart_upload(Bucket=BUCKET, Key="part-copy", UploadId=upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=BUCKET, Key="part-copy")["Body"].read() == data + data[10:1000010]


@check
def ten_thousand_keys_are_listed_in_byte_order_and_a_thousand_deleted_at_once(cluster):
    s3 = bucket(cluster, "many")
    odd = ["a", "a/b", "a//b", "a b", "a+b", "a%b", "a%2Fb", "é", "ü/ö", "z~", "Z", "0", "foo/", "foo+1/x", "😀", "\uffee"]
    keys = [f"dir-{number % 7}/{number:05}" for number in range(10_000 - len(odd))] + odd
    gateways = [cluster.client(0), cluster.client(1)]
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(gateways[n % 2].put_object, Bucket="many", Key=key, Body=b"") for n, key in enumerate(keys)]
        for job in jobs:
            job.result()
    ordered = sorted(keys, key=lambda key: key.encode())
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="many"))
    equal([len(page["Contents"]) for page in pages], [1000] * 10, "sizes of pages")
    listed = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert listed == ordered, next((a, b) for a, b in zip(listed, ordered) if a != b)
    version1 = [e["Key"] for page in s3.get_paginator("list_objects").paginate(Bucket="many") for e in page["Contents"]]
    assert version1 == ordered, "ListObjects (version 1) differs"
    below = [e["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="many", Prefix="dir-3/") for e in page["Contents"]]
    equal(below, [key for key in ordered if key.startswith("dir-3/")], "keys of a prefix")
    rolled = s3.list_objects_v2(Bucket="many", Delimiter="/")
    prefixes = sorted({key[: key.index("/") + 1] for key in keys if "/" in key}, key=lambda key: key.encode())
    equal([entry["Prefix"] for entry in rolled["CommonPrefixes"]], prefixes, "common prefixes")
    equal([entry["Key"] for entry in rolled["Contents"]], [key for key in ordered if "/" not in key], "keys beside prefixes")
    steps, token = [], {}
    while True:
        page = s3.list_objects_v2(Bucket="many", Delimiter="/", MaxKeys=3, **token)
        entries = [e["Prefix"] for e in page.get("CommonPrefixes", [])] + [e["Key"] for e in page.get("Contents", [])]
        equal(page["KeyCount"], len(entries), "KeyCount")
        steps += sorted(entries, key=lambda key: key.encode())
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    equal(steps, sorted(prefixes + [k for k in keys if "/" not in k], key=lambda key: key.encode()), "pages of three")
    after = s3.list_objects_v2(Bucket="many", StartAfter="dir-6/09000", MaxKeys=2)["Contents"]
    equal([entry["Key"] for entry in after], [key for key in ordered if key > "dir-6/09000"][:2], "start-after")
    doomed = ordered[:1000]
    answer = s3.delete_objects(Bucket="many", Delete={"Objects": [{"Key": key} for key in doomed]})
    equal((len(answer["Deleted"]), answer.get("Errors")), (1000, None), "deleted at once")
    left = [e["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="many") for e in page["Contents"]]
    assert left == ordered[1000:], "the list after the deletion differs"
    quiet = s3.delete_objects(Bucket="many", Delete={"Objects": [{"Key": ordered[1000]}, {"Key": "never"}], "Quiet": True})
    equal((quiet.get("Deleted"), quiet.get("Errors")), (None, None), "quiet")
    too_many = {"Objects": [{"Key": str(number)} for number in range(1001)]}
    refused(400, "MalformedXML", s3.delete_objects, Bucket="many", Delete=too_many)


@check
def presigned_get_and_put(cluster):
    s3 = bucket(cluster)
    data = content("presigned", 70_000)
    url = s3.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "pre/signed"}, ExpiresIn=60)
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT", headers={"content-type": "text/plain"})) as answer:
        equal(answer.status, 200, "pre-signed PUT")
    params = {"Bucket": BUCKET, "Key": "pre/signed", "ResponseContentType": "text/x-mine", "ResponseContentDisposition": "attachment"}
    url = s3.generate_presigned_url("get_object", Params=params, ExpiresIn=60)
    with urllib.request.urlopen(url) as answer:
        equal((answer.headers["content-type"], answer.headers["content-disposition"]), ("text/x-mine", "attachment"), "overrides")
        assert answer.read() == data
    expired = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "pre/signed"}, ExpiresIn=1)
    forged = url[:-1] + ("1" if url.endswith("0") else "0")
    for address, code in [(forged, "SignatureDoesNotMatch"), (expired, "AccessDenied")]:
        if address == expired:
            time.sleep(2.1)  # the address lives one second of the gateway's clock
        answer = fetch(address)
        equal(answer[0], 403, "status")
        assert f"<Code>{code}</Code>".encode() in answer[1], answer[1][:300]


def fetch(url):
    """Status and body of a plain GET."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("GET", f"{parts.path}?{parts.query}")
    answer = connection.getresponse()
    return answer.status, answer.read()


@check
def of_fifty_racing_creators_exactly_one_wins(cluster):
    bucket(cluster)
    gateways = [cluster.client(0), cluster.client(1)]
    for round_ in range(5):
        key, start = f"race/{round_}", threading.Barrier(50)

        def create(number):
            start.wait()
            try:
                gateways[number % 2].put_object(Bucket=BUCKET, Key=key, Body=str(number).encode(), IfNoneMatch="*")
                return 200, number
            except ClientError as error:
                return error.response["ResponseMetadata"]["HTTPStatusCode"], number

        with ThreadPoolExecutor(50) as pool:
            outcomes = list(pool.map(create, range(50)))
        statuses = [status for status, _ in outcomes]
        equal((statuses.count(200), statuses.count(412)), (1, 49), f"winners and losers of round {round_}")
        winner = next(number for status, number in outcomes if status == 200)
        equal(gateways[0].get_object(Bucket=BUCKET, Key=key)["Body"].read(), str(winner).encode(), "the winner's bytes")


@check
def conditions_on_put_get_and_delete(cluster):
    s3 = bucket(cluster)
    etag = s3.put_object(Bucket=BUCKET, Key="cond", Body=b"one")["ETag"]
    refused(412, "PreconditionFailed", s3.put_object, Bucket=BUCKET, Key="cond", Body=b"two", IfNoneMatch="*")
    refused(412, "PreconditionFailed", s3.put_object, Bucket=BUCKET, Key="cond", Body=b"two", IfMatch=md5(b"zero"))
    new = s3.put_object(Bucket=BUCKET, Key="cond", Body=b"two", IfMatch=etag)["ETag"]
    s3.put_object(Bucket=BUCKET, Key="cond", Body=b"two", IfMatch=new.strip('"'))
    refused(404, "NoSuchKey", s3.put_object, Bucket=BUCKET, Key="cond-none", Body=b"x", IfMatch=etag)
    refused(304, "304", s3.get_object, Bucket=BUCKET, Key="cond", IfNoneMatch=new)
    refused(412, "PreconditionFailed", s3.get_object, Bucket=BUCKET, Key="cond", IfMatch=etag)
    modified = s3.head_object(Bucket=BUCKET, Key="cond")["LastModified"]
    refused(304, "304", s3.get_object, Bucket=BUCKET, Key="cond", IfModifiedSince=modified)
    refused(412, "PreconditionFailed", s3.get_object, Bucket=BUCKET, Key="cond", IfUnmodifiedSince="2000-01-01")
    refused(412, "PreconditionFailed", s3.delete_object, Bucket=BUCKET, Key="cond", IfMatch=etag)
    s3.delete_object(Bucket=BUCKET, Key="cond", IfMatch=new)
    refused(404, "NoSuchKey", s3.get_object, Bucket=BUCKET, Key="cond")
    not_modified = raw.send(cluster, "GET", f"/{BUCKET}/cond-none", {"if-none-match": '"x"'})
    equal((not_modified.status, not_modified.code), (404, "NoSuchKey"), "a condition on nothing")


@check
def copies_keep_bytes_and_metadata_or_replace_them(cluster):
    s3, other = bucket(cluster), bucket(cluster, "boto-copies")
    for size in (100, 50_000, 3 * MIB):
        data, source = content(f"copy-{size}", size), f"copy source/ü+{size}"
        s3.put_object(Bucket=BUCKET, Key=source, Body=data, Metadata={"a": "b"}, ContentType="text/x-a", CacheControl="no-store")
        copied = other.copy_object(Bucket="boto-copies", Key=f"c{size}", CopySource={"Bucket": BUCKET, "Key": source})
        equal(copied["CopyObjectResult"]["ETag"], md5(data), "ETag of the copy")
        got = other.get_object(Bucket="boto-copies", Key=f"c{size}")
        equal((got["Metadata"], got["ContentType"], got["CacheControl"]), ({"a": "b"}, "text/x-a", "no-store"), "kept")
        assert got["Body"].read() == data
    source = {"Bucket": BUCKET, "Key": "copy source/ü+100"}
    refused(400, "InvalidRequest", s3.copy_object, Bucket=BUCKET, Key=source["Key"], CopySource=source)
    s3.copy_object(Bucket=BUCKET, Key=source["Key"], CopySource=source, MetadataDirective="REPLACE", Metadata={"c": "d"})
    equal(s3.head_object(Bucket=BUCKET, Key=source["Key"])["Metadata"], {"c": "d"}, "replaced")
    refused(412, "PreconditionFailed", s3.copy_object, Bucket=BUCKET, Key="x", CopySource=source, CopySourceIfMatch='"no"')
    refused(404, "NoSuchKey", s3.copy_object, Bucket=BUCKET, Key="x", CopySource={"Bucket": BUCKET, "Key": "nothing"})
    refused(404, "NoSuchBucket", s3.copy_object, Bucket=BUCKET, Key="x", CopySource={"Bucket": "no-bucket-here", "Key": "k"})


@check
def metadata_and_content_headers_come_back(cluster):
    s3 = bucket(cluster)
    headers = {
        "ContentType": "text/x-test; charset=utf-8",
        "CacheControl": "max-age=7",
        "ContentDisposition": 'attachment; filename="a b"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "Metadata": {"one": "1", "dash-ed": "two words"},
    }
    s3.put_object(Bucket=BUCKET, Key="headers", Body=b"x", **headers)
    head = s3.head_object(Bucket=BUCKET, Key="headers")
    equal({name: head[name] for name in headers}, headers, "headers")
    s3.put_object(Bucket=BUCKET, Key="plain", Body=b"x")
    equal(s3.head_object(Bucket=BUCKET, Key="plain")["ContentType"], "binary/octet-stream", "default type")
    limit = {"m": "x" * 2047}
    s3.put_object(Bucket=BUCKET, Key="headers", Body=b"x", Metadata=limit)
    refused(400, "MetadataTooLarge", s3.put_object, Bucket=BUCKET, Key="headers", Body=b"x", Metadata={"m": "x" * 2048})
    equal(s3.head_object(Bucket=BUCKET, Key="headers")["Metadata"], limit, "after the refusal")


@check
def checksums_are_kept_and_compared(cluster):
    s3 = bucket(cluster)
    data = content("checksum", 200_000)
    for algorithm, value in [
        ("CRC32", base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()),
        ("SHA1", base64.b64encode(hashlib.sha1(data).digest()).decode()),
        ("SHA256", base64.b64encode(hashlib.sha256(data).digest()).decode()),
    ]:
        field = f"Checksum{algorithm}"
        answer = s3.put_object(Bucket=BUCKET, Key="sum", Body=data, ChecksumAlgorithm=algorithm)
        equal(answer[field], value, f"{algorithm} by boto3")
        s3.put_object(Bucket=BUCKET, Key="sum", Body=data, **{field: value})
        equal(s3.head_object(Bucket=BUCKET, Key="sum", ChecksumMode="ENABLED")[field], value, "HEAD with checksums")
        equal(s3.head_object(Bucket=BUCKET, Key="sum").get(field), None, "HEAD without")
        part = s3.get_object(Bucket=BUCKET, Key="sum", ChecksumMode="ENABLED", Range="bytes=0-9")
        equal(part.get(field), None, "the whole object's checksum on a range")
        part["Body"].read()
        wrong = {field: base64.b64encode(bytes(len(base64.b64decode(value)))).decode()}
        refused(400, "BadDigest", s3.put_object, Bucket=BUCKET, Key="sum-bad", Body=data, **wrong)
        refused(404, "404", s3.head_object, Bucket=BUCKET, Key="sum-bad")
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    s3.put_object(Bucket=BUCKET, Key="md5", Body=data, ContentMD5=digest)
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    refused(400, "BadDigest", s3.put_object, Bucket=BUCKET, Key="md5-bad", Body=data, ContentMD5=wrong)
    refused(400, "InvalidDigest", s3.put_object, Bucket=BUCKET, Key="md5-bad", Body=data, ContentMD5="short")
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key="md5-bad")


@check
def a_streaming_body_with_a_trailing_checksum_is_stored_without_its_frames(cluster):
    s3 = bucket(cluster)
    data = content("trailer", 150_000)
    chunk = b"%x\r\n" % len(data) + data + b"\r\n0\r\n"
    crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
    headers = {
        "content-encoding": "aws-chunked",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-decoded-content-length": str(len(data)),
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    }
    for trailer, status in [(crc, 200), (b"AAAAAA==", 400)]:
        body = chunk + b"x-amz-checksum-crc32:" + trailer + b"\r\n\r\n"
        answer = raw.send(cluster, "PUT", f"/{BUCKET}/trailer-{status}", headers, body)
        equal(answer.status, status, f"trailer {trailer}: {answer.body[:200]}")
    got = s3.get_object(Bucket=BUCKET, Key="trailer-200")
    assert got["Body"].read() == data
    equal(got.get("ContentEncoding"), None, "aws-chunked is no encoding of the object")
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key="trailer-400")


@check
def a_bucket_may_be_the_first_label_of_the_host(cluster):
    s3 = bucket(cluster)
    s3.put_object(Bucket=BUCKET, Key="virtual/host", Body=b"by host")
    port = urlsplit(cluster.endpoints[0]).port
    # The name need not resolve: only the Host header names the bucket.
    host = f"{BUCKET}.localhost:{port}"
    answer = raw.send(cluster, "GET", "/virtual/host", {"host": host})
    equal((answer.status, answer.body), (200, b"by host"), f"{answer.body[:200]}")
    answer = raw.send(cluster, "GET", "/?list-type=2&prefix=virtual", {"host": host})
    assert b"<Key>virtual/host</Key>" in answer.body, answer.body[:300]


@check
def strange_keys_are_only_keys(cluster):
    s3 = bucket(cluster)
    keys = ["a", "a/b", "a/", "/a", "//", "../up", "./here", "a/../b", "%", "%2F", "a+b c", "x" * 1024, "é" * 512, "q?x=1&y", "<&>", "'\""]
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=f"strange!{key}"[:1024] if len(key) < 512 else key, Body=key.encode())
    for key in keys:
        name = f"strange!{key}"[:1024] if len(key) < 512 else key
        equal(cluster.client(1).get_object(Bucket=BUCKET, Key=name)["Body"].read(), key.encode(), f"key {name[:40]!r}")
    listed = {entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix="strange!")["Contents"]}
    equal(listed, {f"strange!{key}" for key in keys if len(key) < 512}, "listed")


@check
def bad_requests_get_their_error_and_store_nothing(cluster):
    s3 = bucket(cluster)
    path = f"/{BUCKET}/refused"
    put = lambda **kwargs: raw.send(cluster, "PUT", path, body=b"data", **kwargs)
    wrong_keys = (cluster.access_key, "not the secret")
    cases = [
        ("wrong secret", put(keys=wrong_keys), 403, "SignatureDoesNotMatch"),
        ("unknown key", put(keys=("AKIANOBODY", "x")), 403, "InvalidAccessKeyId"),
        ("anonymous", put(sign=False), 403, "AccessDenied"),
        ("signed 20 minutes ago", put(at=-1200), 403, "RequestTimeTooSkewed"),
        ("signed 20 minutes ahead", put(at=1200), 403, "RequestTimeTooSkewed"),
        ("another region", put(region="eu-north-9"), 400, "AuthorizationHeaderMalformed"),
        ("a body that lies about its hash", put(lie={"x-amz-content-sha256": hashlib.sha256(b"other").hexdigest()}), 403, "SignatureDoesNotMatch"),
        ("an unknown header of meaning", put(headers={"x-amz-server-side-encryption": "aws:kms"}), 501, "NotImplemented"),
        ("an unknown parameter", raw.send(cluster, "PUT", path + "?unheard-of", body=b"data"), 501, "NotImplemented"),
        ("no length", raw.send(cluster, "PUT", path, lie={"content-length": None}), 411, "MissingContentLength"),
        ("no bucket", raw.send(cluster, "PUT", "/no-such-bucket-here/k", body=b"data"), 404, "NoSuchBucket"),
        ("a long key", raw.send(cluster, "PUT", f"/{BUCKET}/" + "k" * 1025, body=b"data"), 400, "KeyTooLongError"),
        ("a bad bucket name", raw.send(cluster, "PUT", "/Bad_Name"), 400, "InvalidBucketName"),
        ("bad XML", raw.send(cluster, "POST", f"/{BUCKET}?delete", {"content-md5": base64.b64encode(hashlib.md5(b"<Delete>").digest()).decode()}, b"<Delete>"), 400, "MalformedXML"),
        ("public-read", put(headers={"x-amz-acl": "public-read"}), 501, "NotImplemented"),
    ]
    wrong = []
    for name, answer, status, code in cases:
        if (answer.status, answer.code) != (status, code):
            wrong.append(f"{name}: {answer.status} {answer.code} instead of {status} {code}")
        if "x-amz-request-id" not in answer.headers or "x-amz-id-2" not in answer.headers:
            wrong.append(f"{name}: no request id")
    assert not wrong, "; ".join(wrong)
    assert b"<Region>" + cluster.region.encode() in put(region="eu-north-9").body, "the right region is named"
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key="refused")


@check
def a_body_that_does_not_match_its_signed_hash_is_not_stored(cluster):
    s3 = bucket(cluster)
    endpoint = cluster.endpoints[0]
    headers = raw.signed_headers(cluster, "PUT", f"{endpoint}/{BUCKET}/lying", {}, b"data")
    answer = raw.send(cluster, "PUT", f"/{BUCKET}/lying", headers, b"DATA", sign=False)
    equal((answer.status, answer.code), (400, "XAmzContentSHA256Mismatch"), "another body than was signed")
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key="lying")


@check
def a_truncated_upload_leaves_nothing(cluster):
    s3 = bucket(cluster)
    for size in (1000, 3 * MIB):
        raw.send_truncated(cluster, f"/{BUCKET}/truncated-{size}", content("cut", size), size + 500_000)
    time.sleep(1)  # the gateway notices a cut connection in its own time; nothing may appear then or later
    for size in (1000, 3 * MIB):
        refused(404, "404", s3.head_object, Bucket=BUCKET, Key=f"truncated-{size}")
    equal(s3.list_objects_v2(Bucket=BUCKET, Prefix="truncated")["KeyCount"], 0, "keys")


@check
def what_holds_anyway_is_accepted_and_answered_truthfully(cluster):
    s3 = bucket(cluster)
    s3.put_object(Bucket=BUCKET, Key="plain", Body=b"x", ACL="private", StorageClass="STANDARD")
    equal(s3.get_bucket_versioning(Bucket=BUCKET).get("Status"), None, "versioning")
    equal(s3.get_object_tagging(Bucket=BUCKET, Key="plain")["TagSet"], [], "tags")
    for grants in (s3.get_bucket_acl(Bucket=BUCKET)["Grants"], s3.get_object_acl(Bucket=BUCKET, Key="plain")["Grants"]):
        equal([grant["Permission"] for grant in grants], ["FULL_CONTROL"], "grants")
    versions = s3.list_object_versions(Bucket=BUCKET, Prefix="plain")["Versions"]
    equal([(v["Key"], v["VersionId"], v["IsLatest"]) for v in versions], [("plain", "null", True)], "versions")


@check
def head_errors_have_no_body_and_304_neither(cluster):
    s3 = bucket(cluster)
    etag = s3.put_object(Bucket=BUCKET, Key="bodyless", Body=b"x")["ETag"]
    missing = raw.send(cluster, "HEAD", f"/{BUCKET}/no-such-key")
    equal((missing.status, missing.body), (404, b""), "HEAD of nothing")
    same = raw.send(cluster, "GET", f"/{BUCKET}/bodyless", {"if-none-match": etag})
    equal((same.status, same.body, same.headers.get("etag")), (304, b"", etag), "not modified")


@check
def upload_file_of_twenty_mebibytes_goes_in_parts_by_itself(cluster):
    s3 = bucket(cluster)
    data = content("transfer", 20 * MIB + 1)
    s3.upload_fileobj(io.BytesIO(data), BUCKET, "transfer")
    sink = io.BytesIO()
    cluster.client(1).download_fileobj(BUCKET, "transfer", sink)
    assert sink.getvalue() == data


if __name__ == "__main__":
    main()
