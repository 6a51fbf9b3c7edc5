"""Pushes to a local server that speaks the hub's API, by a real huggingface_hub."""

import base64
import hashlib
import http.server
import io
import json
import pathlib
import tempfile
import threading

import numpy as np
import pytest
from safetensors.numpy import load

import vit_jax
from vit_jax import models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.interop import card, convert, hub, huggingface, load as loading, weight_files
from vit_jax.models import saved

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
utils = pytest.importorskip("huggingface_hub.utils")
pytestmark = pytest.mark.filterwarnings("ignore")  # the other package's own


class Repository:
    """commits: {commit: {path: bytes}}, the last one is what is there."""

    def __init__(self, private=False, **held):
        self.private = private
        self.commits = {"0" * 40: {".gitattributes": b"*.safetensors filter=lfs", **held}}

    @property
    def head(self):
        return list(self.commits)[-1]


class Hub(http.server.BaseHTTPRequestHandler):
    """Creation of repositories, uploads of large files, commits, listings, downloads.

    `answers`: {part of a path: status}, a refusal instead of what was asked for.
    """

    protocol_version = "HTTP/1.1"
    repositories: dict = {}  # noqa: RUF012 (shared by the handlers on purpose)
    objects: dict = {}  # noqa: RUF012
    answers: dict = {}  # noqa: RUF012
    requests: list = []  # noqa: RUF012

    def send(self, values, status=200, **headers):
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Hub.requests.append((self.command, path))
        refusal = next((status for part, status in Hub.answers.items() if part in path), None)
        if self.headers.get("Authorization") == "Bearer wrong":
            said = "Invalid credentials in Authorization header"
            return self.send({"error": said}, 401, X_Error_Message=said)
        if refusal:
            return self.send({"error": "no"}, refusal, X_Error_Message="no")
        if path.startswith("/objects/"):
            Hub.objects[path.removeprefix("/objects/")] = body
            return self.send({})
        if path == "/api/validate-yaml":
            import yaml

            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            return self.send({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in Hub.repositories:
                return self.send({"error": "exists"}, 409)
            private = wanted.get("private") or wanted.get("visibility") == "private"
            Hub.repositories[name] = Repository(private)
            return self.send({"url": f"http://{self.headers['Host']}/{name}"})
        kind, self.name, rest = self.split(path)
        repository = Hub.repositories.get(self.name)
        if repository is None:
            return self.send({}, 404, X_Error_Code="RepoNotFound")
        return self.send(**getattr(self, f"on_{kind}")(repository, rest, body))

    do_GET = do_POST = do_PUT = do_HEAD = answer

    @staticmethod
    def split(path):
        """("commit", "org/name", "main") of "/api/models/org/name/commit/main"."""
        parts = path.removeprefix("/api/models").strip("/").split("/")
        if parts[1].endswith(".git"):
            return "batch", f"{parts[0]}/{parts[1].removesuffix('.git')}", ""
        return (parts[2] if len(parts) > 2 else "revision"), "/".join(parts[:2]), parts[3:]

    def on_revision(self, repository, rest, body):
        held = repository.commits[repository.head]
        siblings = [{"rfilename": path} for path in held]
        about = {"id": self.name, "sha": repository.head, "private": repository.private}
        return {"values": {**about, "siblings": siblings, "tags": [], "downloads": 0}}

    def on_tree(self, repository, rest, body):
        held = repository.commits[repository.head]
        return {
            "values": [
                {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for p, b in held.items()
            ]
        }

    def on_preupload(self, repository, rest, body):
        def mode(path):
            return "lfs" if path.endswith(".safetensors") else "regular"

        asked = [file["path"] for file in json.loads(body)["files"]]
        return {
            "values": {
                "files": [
                    {"path": path, "uploadMode": mode(path), "shouldIgnore": False}
                    for path in asked
                ]
            }
        }

    def on_batch(self, repository, rest, body):
        here = f"http://{self.headers['Host']}/objects"
        return {
            "values": {
                "transfer": "basic",
                "objects": [
                    {**wanted, "actions": {"upload": {"href": f"{here}/{wanted['oid']}"}}}
                    for wanted in json.loads(body)["objects"]
                ],
            }
        }

    def on_commit(self, repository, rest, body):
        header, *changes = map(json.loads, body.splitlines())
        if header["value"].get("parentCommit", repository.head) != repository.head:
            return {"values": {"error": "no longer the head"}, "status": 412}
        held = dict(repository.commits[repository.head])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            else:
                assert hashlib.sha256(Hub.objects[value["oid"]]).hexdigest() == value["oid"]
                held[value["path"]] = Hub.objects[value["oid"]]
        commit = f"{len(repository.commits):040}"
        repository.commits[commit] = held
        url = f"http://{self.headers['Host']}/{self.name}/commit/{commit}"
        return {"values": {"commitUrl": url, "commitOid": commit}}

    def on_resolve(self, repository, rest, body):
        content = repository.commits[repository.head].get("/".join(rest[1:]))
        if content is None:
            return {"values": {}, "status": 404, "X_Error_Code": "EntryNotFound"}
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return {"values": content, "ETag": etag, "X_Repo_Commit": repository.head}

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def online(server, monkeypatch, tmp_path):
    """A hub without repositories, and a login to it."""
    for name in ("repositories", "objects", "answers"):
        monkeypatch.setattr(Hub, name, {})
    monkeypatch.setattr(Hub, "requests", [])
    monkeypatch.setattr(constants, "ENDPOINT", server)
    files = server + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return Hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a finished run, as far as conversions read it."""
    workdir = tmp_path_factory.mktemp("run") / "pets"
    labels = ("ant", "bee", "cat")
    config = models.get_config("debug", patch_size=16, image_size=32, num_classes=3, labels=labels)
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    saved.save(workdir / "model", config, params, {"step": 40, "last_step": 40})
    data = {"dataset": "folder:/home/somebody/pets?separator=;"}
    (workdir / "config.json").write_text(json.dumps({"format": 2, "data": data}))
    record = {"data": "folder:/home/somebody/pets[test]", "step": 40, "accuracy": 0.925}
    other = {"data": "digits[test]", "checkpoint": "/elsewhere", "accuracy": 0.5}
    evaluation = {"classification": record, "real": other, "fewshot": {"results": []}}
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    return workdir


@pytest.fixture(scope="module")
def directory(run, tmp_path_factory):
    """What is pushed of it."""
    made = tmp_path_factory.mktemp("made")
    huggingface.save(made, *saved.load(run / "model"))
    return made


@pytest.fixture(autouse=True)
def read_again(monkeypatch):
    """Conversions are proved by ourselves: whether transformers agrees is test_peers' matter."""
    monkeypatch.setattr(convert.peers, "available", lambda name: "")


def push(run, target="hf:org/pets", **options):
    return convert.convert(str(run), target, "huggingface", **options)


def test_a_run_is_pushed_in_one_commit_and_read_again(online, run, capsys):
    flags = ["--to=huggingface", "--license=apache-2.0"]
    assert main(["convert", str(run), "hf:org/pets", *flags]) == 0
    out = capsys.readouterr().out
    assert "hf:org/pets: maximum logit difference 0 " in out and f"/org/pets/commit/{1:040}" in out
    assert "real is for other weights" in out
    repository = online.repositories["org/pets"]
    assert len(repository.commits) == 2 and not repository.private
    held = repository.commits[repository.head]
    assert set(held) == {
        *(".gitattributes", "README.md", "config.json"),
        *("model.safetensors", "preprocessor_config.json"),
    }
    assert "vit.embeddings.cls_token" in load(held["model.safetensors"])
    read = huggingface_hub.ModelCard(held["README.md"].decode())
    assert read.data.license == "apache-2.0" and read.data.library_name == "transformers"
    (score,) = read.data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == (
        *("pets[test]", "accuracy"),
        0.925,
    )
    assert f"vit_jax {vit_jax.__version__}" in read.text and "92.50" in read.text
    assert "Trained on pets for 40 steps" in read.text and 'model="org/pets"' in read.text
    assert "somebody" not in str(held)  # nothing of this machine
    config, params = loading.read("hf:org/pets")
    wanted, ours = loading.read(run)
    assert config.labels == wanted.labels
    assert all(np.array_equal(params[name], ours[name]) for name in ours)


def test_an_empty_repository_is_used_and_a_full_one_refused(online, run):
    online.repositories["org/pets"] = Repository()
    proof = push(run, private=False)
    assert any("states no licence" in note for note in proof.notes)
    assert ("POST", "/api/repos/create") not in online.requests
    before = dict(online.repositories["org/pets"].commits)
    with pytest.raises(UserError, match=r"exists and has README.md, config.json, .*overwritten"):
        push(run)
    assert online.repositories["org/pets"].commits == before


def test_private_is_asked_for_and_not_ignored(online, run):
    push(run, "hf:org/mine", private=True)
    assert online.repositories["org/mine"].private
    online.repositories["org/open"] = Repository()
    with pytest.raises(UserError, match="exists and is public"):
        push(run, "hf:org/open", private=True)
    assert len(online.repositories["org/open"].commits) == 1


def test_a_failed_proof_pushes_nothing(online, run, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken(directory, config, params):
        name = "blocks/0/mlp/dense2/kernel"
        huggingface.save(directory, config, dict(params) | {name: -params[name]})

    form = convert.FORMATS["huggingface"]._replace(save=broken)
    monkeypatch.setitem(convert.FORMATS, "huggingface", form)
    with pytest.raises(UserError, match="refused: logits differ"):
        push(run)
    assert online.repositories == {} and online.objects == {}
    assert list(tmp_path.iterdir()) == []  # nor a folder of the organisation


@pytest.mark.parametrize(
    "part, status, message",
    [
        ("/repos/create", 403, "cannot write to org.* Nothing was pushed.$"),
        (
            "/preupload/",
            403,
            "cannot write to org.*repository is empty; run the same command again",
        ),
        ("/repos/create", 409, "there was another commit"),
        ("/objects/", 403, "Nothing was pushed"),
        ("/commit/", 412, "there was another commit"),
        ("/commit/", 500, "the hub returns 500"),
        ("/api/validate-yaml", 400, r"hub returns 400 \("),
        ("/api/models/org", 500, "the hub returns 500"),
    ],
)
def test_a_refused_push_leaves_nothing(online, directory, part, status, message):
    """And the same command goes on when the reason is gone."""
    online.answers[part] = status
    with pytest.raises(UserError, match=message) as error:
        hub.push(directory, hub.find_place("hf:org/pets", False), "a model")
    assert "\n" not in str(error.value)
    assert all(len(each.commits) == 1 for each in online.repositories.values())
    online.answers.clear()
    hub.push(directory, hub.find_place("hf:org/pets", False), "a model")
    assert len(online.repositories["org/pets"].commits) == 2


def test_nothing_is_pushed_over_what_somebody_pushed_meanwhile(online, directory):
    online.repositories["org/pets"] = repository = Repository()
    place = hub.find_place("hf:org/pets", False)
    repository.commits["f" * 40] = {"README.md": b"theirs"}
    with pytest.raises(UserError, match=r"there was another commit.*Nothing was pushed"):
        hub.push(directory, place, "a model")
    assert repository.head == "f" * 40
    Hub.repositories["org/other"] = Repository()
    with pytest.raises(UserError, match="there was another commit"):
        hub.push(directory, hub.Place("org/other", False, None), "a model")  # made meanwhile


def test_without_a_token_it_says_how_to_log_in(online, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"requires a login: run `hf auth login`.*HF_TOKEN"):
        push(run)
    assert online.requests == []
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match="the hub does not accept the token"):
        push(run)
    assert online.repositories == {}


def test_without_a_network_it_is_one_line(online, run, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached") as error:
        push(run)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_session = getattr(utils, "close_session", None) or utils.reset_sessions
    new_session()
    try:
        with pytest.raises(UserError, match="the hub cannot be reached"):
            push(run)
    finally:
        new_session()


@pytest.mark.parametrize(
    "target, options, message",
    [
        ("hf:pets", {}, "cannot be pushed to: it must be hf:ORG/NAME"),
        ("hf:", {}, "cannot be pushed to"),
        ("hf:org/pets@main", {}, "cannot be pushed to"),
        ("hf:org/a/b", {}, "cannot be pushed to"),
        ("hf:org/pe ts", {}, "cannot be pushed to"),
        ("hf:org/pets--x", {}, "not a valid name on the hub"),
        ("hf:org/.pets", {}, "not a valid name on the hub"),
        (
            "hf:org/pets",
            {"to": "timm"},
            "hf:org/pets is for --to=huggingface, and this is --to=tim",
        ),
        ("hf:org/pets", {"to": "native"}, "is for --to=huggingface"),
        ("x.npz", {"to": "npz", "licence": "mit"}, "--license is for --to=huggingface"),
        ("x", {"private": True}, "--private is for a push"),
        ("gs://bucket/pets", {}, "gs:/bucket/pets is not a path on disk"),
        ("s3://bucket/x.npz", {"to": "npz"}, "not a path on disk"),
        ("hf://org/pets", {}, "it must be hf:ORG/NAME"),
        ("hf:org/pets", {"licence": "Apache 2"}, "not a short name such as apache-2.0"),
    ],
)
def test_invalid_targets_are_refused_first(online, tmp_path, monkeypatch, target, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        convert.convert("absent", target, **{"to": "huggingface", **options})
    assert online.requests == [] and list(tmp_path.iterdir()) == []


def test_exports_are_not_pushed():
    with pytest.raises(UserError, match="hf:org/pets is not a path on disk"):
        convert.check_free(pathlib.Path("hf:org/pets"))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[hf\]'"):
        hub.find_place("hf:org/pets", False)


def test_a_repository_with_a_bin_alone_takes_torch(online, run, directory, monkeypatch):
    held = {file.name: file.read_bytes() for file in directory.iterdir()}
    arrays = load(held.pop("model.safetensors"))
    online.repositories["org/old"] = Repository(**held, **{"pytorch_model.bin": b"torch's"})
    with monkeypatch.context() as without:
        without.setattr(weight_files, "has_torch", lambda: False)
        with pytest.raises(UserError, match=r"hf:org/old has no .safetensors.*pip install torch"):
            loading.read("hf:org/old")
    assert not any("pytorch_model" in path for _, path in online.requests)  # not even downloaded
    torch = pytest.importorskip("torch")
    written = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, written)
    held["pytorch_model.bin"] = written.getvalue()
    online.repositories["org/old"].commits["1" * 40] = held
    _, params = loading.read("hf:org/old")
    _, ours = loading.read(run)
    assert all(np.array_equal(params[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    "spec, name",
    [
        ("digits[test]", "digits[test]"),
        ("tfds:oxford_flowers102:2.1.1[test]", "tfds:oxford_flowers102:2.1.1[test]"),
        ("hf:org/name?image=img[train]", "hf:org/name[train]"),
        ("folder:/home/somebody/pets[test]", "pets[test]"),
        ("folder:~/pets/table.csv?separator=;[test]", "table.csv[test]"),
        ("/home/somebody/kind.py:/data/x[test]", "x[test]"),
        ("vtab:caltech101[test]", "vtab:caltech101[test]"),
        ("nothing that is known", "a private data set"),
        (None, "a private data set"),
    ],
)
def test_a_card_has_no_paths_of_this_machine(spec, name):
    assert card.public_name(spec) == name


def test_a_card_without_facts_is_short_and_valid(tmp_path):
    config = models.get_config("debug", num_classes=3, representation_size=16)
    assert card.origin_of(str(tmp_path)) == card.origin_of("hf:org/name") == card.UNKNOWN
    (tmp_path / "evaluation.json").write_text('[{"accuracy": 1}]')
    assert card.origin_of(str(tmp_path)) == card.UNKNOWN
    (tmp_path / "evaluation.json").write_text('{"a": {"accuracy": NaN, "mAP": 7}, "b": 3}')
    assert card.origin_of(str(tmp_path)) == card.UNKNOWN
    read = huggingface_hub.ModelCard(card.model_card(config))
    assert read.data.pipeline_tag == "image-feature-extraction" and read.data.license is None
    assert "Licence: not stated" in read.text and "Trained" not in read.text
