"""A stand-in of Kaggle's API on this machine, for the real CLI to talk to.

The CLI of kaggle 2.2.4 is run as it is. KAGGLE_API_ENVIRONMENT=LOCALHOST sends its requests to http://localhost, and the
proxy of this environment brings them to a free port of this machine. (KAGGLE_API_ENVIRONMENT=TEST does nothing in 2.2.4: the
CLI names the environment to its library itself.) Routes and fields are those of kagglesdk 0.1.37.

What is sent is kept: `calls`, `blobs`, `datasets`, `pushed`. What is answered can be changed: `answers` by method,
`statuses` of a run, `processing` of a dataset, `output` and `log` of a run, `files` of the competition, `reason` of a failed
submission.
"""

import io
import json
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

USER = "somebody"
DATE = "Mon, 02 Sep 2024 10:00:00 GMT"
JSON_DATE = "2024-09-02T10:00:00.000Z"


class Refusal(Exception):
    """An HTTP error to answer with; without a message it has no JSON body, as Kaggle's front end answers."""

    def __init__(self, code, message=None, headers=None):
        super().__init__(code)
        self.code, self.message, self.headers = code, message, headers or {}


def refuse(code, message=None, headers=None, times=None):
    """An answer that is an HTTP error, always or the first `times` times (then the stand-in's own answer)."""
    left = [times]

    def answer(body):
        if left[0] is not None:
            if left[0] == 0:
                return
            left[0] -= 1
        raise Refusal(code, message, headers)

    return answer


@dataclass
class StandIn:
    """The state of Kaggle, and the requests it got."""

    calls: list = field(default_factory=list)  # (method, body) in order
    answers: dict = field(default_factory=dict)  # method -> function of the body; None: the stand-in's own answer
    blobs: dict = field(default_factory=dict)  # token -> {"name", "length", "data"}
    datasets: dict = field(default_factory=dict)  # slug -> list of {"request", "files": name -> bytes}
    processing: list = field(default_factory=list)  # states to answer before READY
    pushed: dict = field(default_factory=dict)  # "owner/slug" -> list of requests
    statuses: list = field(default_factory=list)  # of runs: (state, failure message) to answer; the last one stays
    output: dict = field(default_factory=dict)  # name -> bytes that a run leaves
    outputs: dict = field(default_factory=dict)  # "owner/slug" -> the same, of one kernel
    log: str = ""
    files: dict = field(default_factory=dict)  # of the competition: name -> bytes
    packed: set = field(default_factory=set)  # names that are served as .zip
    ranges: list = field(default_factory=list)  # Range headers of downloads
    submissions: list = field(default_factory=list)
    scores: list = field(default_factory=list)  # states to answer before the score
    reason: str = ""  # why a submission failed; Kaggle often leaves it blank
    refuse_upload: set = field(default_factory=set)  # names of files whose upload fails

    def asked(self, method):
        """The bodies of all calls of a method."""
        return [body for name, body in self.calls if name == method]

    def answer(self, method, body):
        self.calls.append((method, body))
        given = self.answers.get(method, lambda body: None)(body)
        return given if given is not None else getattr(self, method)(body)

    # competitions

    def ListDataFiles(self, body):
        page = int(body.get("pageToken") or 0)
        names, size = list(self.files), body["pageSize"]
        listed = names[page * size : (page + 1) * size]
        more = {"nextPageToken": str(page + 1)} if (page + 1) * size < len(names) else {}
        entries = [{"name": n, "totalBytes": len(self.files[n]), "creationDate": JSON_DATE} for n in listed]
        return {"files": entries} | more

    def DownloadDataFile(self, body):
        name = body["fileName"]
        if name not in self.files:
            raise Refusal(404, "Not found")
        return f"/storage/competition/{name}{'.zip' if name in self.packed else ''}"

    def CreateCodeSubmission(self, body):
        self.submissions.insert(0, {"ref": 700 + len(self.submissions), "date": JSON_DATE, "fileName": body["fileName"]})
        self.submissions[0] |= {"description": body["submissionDescription"], "status": "PENDING"}
        return {"message": "Successfully submitted", "ref": self.submissions[0]["ref"]}

    def GetSubmissionLimits(self, body):
        return {"numAllowedNow": 4, "numToday": 1, "numTotal": 1}

    def ListSubmissions(self, body):
        if self.submissions and len(self.asked("CreateCodeSubmission")):
            state = self.scores.pop(0) if self.scores else "COMPLETE"
            self.submissions[0]["status"] = state
            if state == "COMPLETE":
                self.submissions[0] |= {"publicScore": "0.17012", "privateScore": "0.16234"}
            if state == "ERROR" and self.reason:
                self.submissions[0] |= {"errorDescription": self.reason}
        return {"submissions": self.submissions}

    # datasets

    def StartBlobUpload(self, body):
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = {"name": body["name"], "length": body.get("contentLength", 0), "data": b""}
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def versions(self, body):
        found = self.datasets.get(body.get("datasetSlug") or body["slug"])
        if not found:
            raise Refusal(403, "Permission 'datasets.get' was denied")
        return found

    def _add_version(self, slug, request, files):
        sent = {self.blobs[each["token"]]["name"]: self.blobs[each["token"]]["data"] for each in files}
        self.datasets.setdefault(slug, []).append({"request": request, "files": sent})
        return {"status": "Ok", "ref": slug, "url": f"https://www.kaggle.com/datasets/{USER}/{slug}"}

    def CreateDataset(self, body):
        return self._add_version(body["slug"], body, body.get("files", []))

    def CreateDatasetVersion(self, body):
        self.versions(body)
        return self._add_version(body["datasetSlug"], body["body"], body["body"].get("files", []))

    def GetDatasetStatus(self, body):
        self.versions(body)
        return {"status": self.processing.pop(0) if self.processing else "READY"}

    def GetDataset(self, body):
        notes = [version["request"].get("versionNotes", "") for version in self.versions(body)]
        versions = [{"versionNumber": n, "creationDate": JSON_DATE, "versionNotes": t} for n, t in enumerate(notes, 1)]
        return {"currentVersionNumber": len(notes), "title": "dataset", "versions": versions}

    def GetDatasetMetadata(self, body):
        return {"info": {"title": "dataset", "licenses": [{"name": "CC-BY-NC-4.0"}]}}

    def ListDatasetFiles(self, body):
        files = self.versions(body)[-1]["files"]
        return {"datasetFiles": [{"name": n, "totalBytes": len(d), "creationDate": JSON_DATE} for n, d in files.items()]}

    def DownloadDataset(self, body):
        if body["fileName"] not in self.versions(body)[-1]["files"]:
            raise Refusal(404, "Not found")
        return f"/storage/dataset/{body['datasetSlug']}/{body['fileName']}"

    # kernels

    def SaveKernel(self, body):
        versions = self.pushed.setdefault(body["slug"], [])
        versions.append(body)
        return {"ref": body["slug"], "url": f"https://www.kaggle.com/code/{body['slug']}", "versionNumber": len(versions)}

    def GetKernel(self, body):
        slug = f"{body['userName']}/{body['kernelSlug']}"
        if slug not in self.pushed:
            raise Refusal(403, "Permission 'kernels.get' was denied")
        request, versions = self.pushed[slug][-1], len(self.pushed[slug])
        sources = {name: request.get(name, []) for name in ("datasetDataSources", "kernelDataSources")}
        return {"metadata": {"ref": slug, "currentVersionNumber": versions, "lastRunTime": JSON_DATE} | sources}

    def GetAcceleratorQuotaStatistics(self, body):
        return {"quotaRefreshTime": JSON_DATE, "gpuQuota": {"timeUsed": "30600s", "totalTimeAllowed": "108000s"}}

    def GetKernelSessionStatus(self, body):
        if not self.statuses:
            return {"status": "COMPLETE"}
        state, message = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"status": state} | ({"failureMessage": message} if message else {})

    def ListKernelSessionOutput(self, body):
        kernel = f"{body['userName']}/{body['kernelSlug']}"
        names = self.outputs.get(kernel, self.output)
        url = "http://localhost/storage/output/" + kernel
        return {"files": [{"fileName": name, "url": f"{url}/{name}"} for name in names], "log": self.log}

    # what lies in storage

    def stored(self, path):
        kind, _, name = path.partition("/")
        if kind == "competition":
            plain = name.removesuffix(".zip")
            return zipped(plain, self.files[plain]) if plain in self.packed else self.files[plain]
        if kind == "dataset":
            slug, _, name = name.partition("/")
            return self.datasets[slug][-1]["files"][name]
        owner, slug, name = name.split("/", 2)
        return self.outputs.get(f"{owner}/{slug}", self.output)[name]

    def upload(self, token, data, content_range):
        """Takes a blob; returns the HTTP status and headers of Google's resumable uploads."""
        blob = self.blobs[token]
        if blob["name"] in self.refuse_upload:
            return 400, {}
        if (content_range or "").startswith("bytes */"):  # how far has it come?
            return (200, {}) if len(blob["data"]) == blob["length"] else (308, {})
        blob["data"] = data
        return 200, {}


def zipped(name, data):
    """A zip of one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return packed.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for the stand-in that the server carries."""

    def do_POST(self):
        method = urlsplit(self.path).path.rsplit("/", 1)[1]
        body = json.loads(self.read_body() or "{}")
        try:
            if "Authorization" not in self.headers:
                raise Refusal(401, "Unauthenticated")
            answer = self.server.stand_in.answer(method, body)
        except Refusal as refusal:
            content = {"code": refusal.code, "message": refusal.message} if refusal.message else None
            return self.reply(refusal.code, content, refusal.headers)
        if isinstance(answer, str):
            return self.reply(302, None, {"Location": f"http://localhost{answer}"})
        return self.reply(200, answer)

    def do_GET(self):
        data = self.server.stand_in.stored(unquote(urlsplit(self.path).path).removeprefix("/storage/"))
        headers = {"Last-Modified": DATE, "ETag": f'"{len(data)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked:
            self.server.stand_in.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            return self.reply(206, data[start:], headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        return self.reply(200, data, headers)

    def do_PUT(self):
        token = urlsplit(self.path).path.rsplit("/", 1)[1]
        code, headers = self.server.stand_in.upload(token, self.read_body(), self.headers.get("Content-Range"))
        self.reply(code, b"", headers)

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, code, content, headers=None):
        is_json = isinstance(content, dict)
        data = json.dumps(content).encode() if is_json else content or b""
        self.send_response(code)
        headers = {"Content-Type": "application/json" if is_json else "application/octet-stream"} | (headers or {})
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextmanager
def standing_in(folder, monkeypatch):
    """Starts a stand-in and has the CLI of every process that is started from here talk to it, in the name of `USER`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stand_in = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name in ("KAGGLE_API_TOKEN", "HTTP_PROXY", "NO_PROXY", "no_proxy", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HOME": folder,  # no configuration of the user who runs the tests is read
        "KAGGLE_CONFIG_DIR": folder / "no-config",
        "TMPDIR": folder,
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": "the-stand-in-takes-any",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    try:
        yield server.stand_in
    finally:
        server.shutdown()
        server.server_close()
