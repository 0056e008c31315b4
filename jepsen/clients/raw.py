"""One HTTP request at a time, signed by botocore or not at all, for what no well-behaved client sends."""

import datetime
import http.client
import re
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import Config
from botocore.credentials import Credentials


class Answer:
    """Status, headers in lower case, body."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def code(self):
        """The code of an error document."""
        found = re.search(rb"<Code>([^<]*)</Code>", self.body)
        return found.group(1).decode() if found else None


def signed_headers(cluster, method, url, headers, body, at=None, region=None, keys=None, unsigned=False):
    """The headers of a signed request; `at` shifts its clock by seconds, `unsigned` leaves the payload out."""
    access_key, secret_key = keys or (cluster.access_key, cluster.secret_key)
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    if unsigned:
        request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    if headers.get("x-amz-content-sha256") == "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
        request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
    signer = S3SigV4Auth(Credentials(access_key, secret_key), "s3", region or cluster.region)
    if at is None:
        signer.add_auth(request)
    else:
        moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=at)
        _sign_at(signer, request, moment)
    return dict(request.headers.items())


def _sign_at(signer, request, moment):
    """Signs as if it were another time, by the signer's own steps."""
    request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
    signer._modify_request_before_signing(request)  # pylint: disable=protected-access
    canonical = signer.canonical_request(request)
    to_sign = signer.string_to_sign(request, canonical)
    signer._inject_signature_to_request(request, signer.signature(to_sign, request))  # pylint: disable=protected-access


def send(cluster, method, path, headers=None, body=b"", sign=True, gateway=0, lie=None, **signing):
    """Sends a request. `lie` replaces headers after signing; a lie of None removes one."""
    endpoint = cluster.endpoints[gateway]
    headers = dict(headers or {})
    if sign:
        headers = signed_headers(cluster, method, endpoint + path, headers, body, **signing)
    for name, value in (lie or {}).items():
        headers = {key: kept for key, kept in headers.items() if key.lower() != name.lower()}
        if value is not None:
            headers[name] = value
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=any(k.lower() == "host" for k in headers), skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        names = {name.lower() for name in headers}
        if "content-length" not in names and "transfer-encoding" not in names and (body or method in ("PUT", "POST")):
            if not lie or "content-length" not in {name.lower() for name in lie}:
                connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        if body:
            connection.send(body)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def send_truncated(cluster, path, body, announced):
    """A PUT that announces more bytes than it sends, and then hangs up."""
    endpoint = cluster.endpoints[0]
    headers = signed_headers(cluster, "PUT", endpoint + path, {}, b"", unsigned=True)
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    connection.putrequest("PUT", path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("content-length", str(announced))
    connection.endheaders()
    connection.send(body)
    connection.close()
