"""deploy/nginx.conf before a server: people get the token of their group, programs send their own, others nothing."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from medret.serve import LiveStores, ServeSettings, Service, create_app
from medret.serve.access import Tokens
from tests.serve.conftest import serving

CONFIG = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
PEOPLE, PROGRAMS = "medret.hospital.example", "medret-api.hospital.example"
pytestmark = pytest.mark.skipif(not Path(NGINX).exists() or not shutil.which("openssl"), reason="needs nginx, openssl")


class SignedIn(BaseHTTPRequestHandler):
    """Stands in for oauth2-proxy: a cookie says who is signed in, by groups."""

    def do_GET(self) -> None:
        groups = (self.headers["Cookie"] or "").partition("groups=")[2]
        self.send_response(202 if groups and self.path == "/oauth2/auth" else 401)
        self.send_header("X-Auth-Request-Groups", groups)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Front:
    """nginx at a port. tls: trusts its certificate."""

    port: int
    tls: ssl.SSLContext

    def get(self, host: str, path: str, **headers: str) -> httpx.Response:
        """Ask as a browser or a program asks that host."""
        with httpx.Client(verify=self.tls, timeout=60) as client:
            url = f"https://127.0.0.1:{self.port}{path}"
            return client.get(url, headers={"Host": host, **headers}, extensions={"sni_hostname": host})


@pytest.fixture(scope="module")
def front(live: LiveStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    tokens = folder / "tokens.toml"
    entries = {"all": None, "ct": "modality = 'CT'"}
    tokens.write_text(
        "\n".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
            + (f'where = "{where}"\n' if where else "")
            for name, where in entries.items()
        )
    )
    (folder / "medret-tokens.map").write_text('"~(^|,)doctors(,|$)" "Bearer all";\n"~(^|,)chest(,|$)" "Bearer ct";\n')
    key, certificate = folder / "medret.key", folder / "medret.crt"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
            "-subj", f"/CN={PEOPLE}", "-addext", f"subjectAltName=DNS:{PEOPLE},DNS:{PROGRAMS}",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    signing_in = ThreadingHTTPServer(("127.0.0.1", 0), SignedIn)
    threading.Thread(target=signing_in.serve_forever, daemon=True).start()
    app = create_app(Service(live, ServeSettings(device="cpu"), tokens=Tokens(tokens)))
    with serving(app) as server, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        text = CONFIG.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        text = text.replace("127.0.0.1:4180", f"127.0.0.1:{signing_in.server_address[1]}")
        text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/nginx/", f"{folder}/")
        free.close()
        yield from run_nginx(folder, text, Front(port, ssl.create_default_context(cafile=str(certificate))))
    signing_in.shutdown()


def run_nginx(folder: Path, text: str, front: Front) -> Iterator[Front]:
    """nginx in the foreground, with all its files in a folder; it listens once its process file is there."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off;\nuser root;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{text}\n}}\n"
    )
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", front.port)) == 0:
                    break
        yield front
    finally:
        process.terminate()
        process.wait(30)


def test_people_see_what_their_group_may_see(front: Front) -> None:
    path = "/v1/volumes"
    everything = front.get(PEOPLE, path, Cookie="groups=staff,doctors").json()["volumes"]
    chest = front.get(PEOPLE, path, Cookie="groups=chest").json()["volumes"]
    assert {row["labels"]["modality"] for row in everything} > {row["labels"]["modality"] for row in chest} == {"CT"}
    page = front.get(PEOPLE, "/", Cookie="groups=chest")
    assert page.status_code == 200
    assert page.headers["Strict-Transport-Security"]
    assert page.headers["Content-Security-Policy"]


def test_who_is_not_signed_in_or_in_no_group_sees_nothing(front: Front) -> None:
    answer = front.get(PEOPLE, "/v1/volumes?limit=1")
    assert answer.status_code == 302
    assert answer.headers["Location"].endswith("/oauth2/sign_in?rd=/v1/volumes?limit=1")
    assert front.get(PEOPLE, "/v1/volumes", Authorization="Bearer all").status_code == 302
    assert front.get(PEOPLE, "/v1/volumes", Cookie="groups=visitors").status_code == 401
    own = front.get(PEOPLE, "/v1/volumes", Cookie="groups=chest", Authorization="Bearer all").json()
    assert {row["labels"]["modality"] for row in own["volumes"]} == {"CT"}, "a browser's header takes no effect"
    assert front.get(PEOPLE, "/metrics", Cookie="groups=doctors").status_code == 404


def test_programs_send_a_token_of_their_own(front: Front) -> None:
    assert front.get(PROGRAMS, "/v1/snapshot").status_code == 401
    assert front.get(PROGRAMS, "/v1/snapshot", Authorization="Bearer all").status_code == 200
    assert front.get(PROGRAMS, "/metrics", Authorization="Bearer all").status_code == 404


def test_bounds_agree_with_those_of_the_server() -> None:
    limits = ServeSettings()
    assert set(re.findall(r"client_max_body_size (\d+)m", CONFIG)) == {str(limits.upload_bytes >> 20)}
    assert {float(found) for found in re.findall(r"proxy_read_timeout (\d+)s", CONFIG)} == {limits.request_seconds + 60}
