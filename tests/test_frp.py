"""Both files in frp/ are held against the frp v1 format, each other and frp/README.md."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

FRP = Path(__file__).resolve().parent.parent / "frp"
GPUSERVER_PORT = 9000
ENV = {"FRP_TOKEN": "a-token-for-tests", "FRP_SERVER_ADDR": "tutor.example.org"}
USED = {"frpc.toml": {"FRP_TOKEN", "FRP_SERVER_ADDR"}, "frps.toml": {"FRP_TOKEN"}}
VARIABLE = re.compile(r"\{\{\s*\.Envs\.([A-Za-z_]\w*)\s*\}\}")

Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A table of an frp file: camelCase keys, none unknown, no type converted."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Auth(Strict):
    method: Literal["token", "oidc"]
    token: Text


class TLS(Strict):
    cert_file: Text | None = None
    key_file: Text | None = None
    trusted_ca_file: Text | None = None


class ClientTLS(TLS):
    enable: bool = True
    server_name: Text | None = None


class ServerTLS(TLS):
    force: bool = False


class ClientTransport(Strict):
    tls: ClientTLS


class ServerTransport(Strict):
    tls: ServerTLS


class HealthCheck(Strict):
    type: Literal["http", "tcp"]
    path: str = ""
    timeout_seconds: Positive = 3
    max_failed: Positive = 1
    interval_seconds: Positive = 10


class Proxy(Strict):
    name: Text
    type: Literal["tcp"]
    local_ip: Text = Field(alias="localIP")
    local_port: Port
    remote_port: Port
    health_check: HealthCheck


class Client(Strict):
    server_addr: Text
    server_port: Port
    login_fail_exit: bool = True
    auth: Auth
    transport: ClientTransport
    proxies: list[Proxy]


class AllowedPort(Strict):
    single: Port


class Server(Strict):
    bind_port: Port
    proxy_bind_addr: Text | None = None
    auth: Auth
    transport: ServerTransport
    allow_ports: list[AllowedPort]
    max_ports_per_client: int = 0


def render(text: str, env: Mapping[str, str]) -> str:
    """Fill in the variables as frp does, but refuse an unset one (frp writes "<no value>")."""

    def value(found: re.Match[str]) -> str:
        # frp takes an empty token as "no login check", so empty counts as unset.
        if not env.get(found[1]):
            raise LookupError(f"environment variable {found[1]} is not set")
        return env[found[1]]

    rendered = VARIABLE.sub(value, text)
    if "{{" in rendered:
        raise ValueError("the only template these files may use is {{ .Envs.NAME }}")
    return rendered


def client_of(text: str, env: Mapping[str, str] = ENV) -> Client:
    return Client.model_validate(tomllib.loads(render(text, env)))


def server_of(text: str, env: Mapping[str, str] = ENV) -> Server:
    return Server.model_validate(tomllib.loads(render(text, env)))


def faults(client: Client, server: Server) -> list[str]:
    """What would keep this pair from carrying gpuserver safely, in words."""
    forced, encrypts = server.transport.tls.force, client.transport.tls.enable
    allowed = {port.single for port in server.allow_ports}
    proxies = client.proxies
    checks = {
        "serverPort is not bindPort": client.server_port == server.bind_port,
        "auth.method is not token": client.auth.method == server.auth.method == "token",
        "the tokens differ": client.auth.token == server.auth.token,
        "the server does not force TLS": forced,
        "the server forces TLS, the client disables it": encrypts or not forced,
        "the client gives up when the server is away": not client.login_fail_exit,
        "a client is not limited to one port": server.max_ports_per_client == 1,
        "there is not exactly one proxy": len(proxies) == 1,
        "remotePort is not in allowPorts": all(p.remote_port in allowed for p in proxies),
        "localPort is not gpuserver's": all(p.local_port == GPUSERVER_PORT for p in proxies),
        "localIP is not loopback": all(p.local_ip == "127.0.0.1" for p in proxies),
        "the health check is not http on /health": all(
            (p.health_check.type, p.health_check.path) == ("http", "/health") for p in proxies
        ),
    }
    return [fault for fault, good in checks.items() if not good]


def literal_secrets(text: str) -> list[str]:
    """Lines that hold a secret's value, as a key's or in a comment, instead of a variable."""
    found = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        secret_key = re.match(r"[^#]*(token|password|secret)\w*\s*$", key, re.IGNORECASE)
        long_random = re.search(r"[A-Za-z0-9+/_=-]{24,}", line)
        if long_random or (secret_key and not VARIABLE.fullmatch(value.strip(' "'))):
            found.append(line)
    return found


def read(name: str) -> str:
    return (FRP / name).read_text(encoding="utf-8")


def edited(name: str, old: str, new: str) -> dict[str, str]:
    texts = {file: read(file) for file in USED}
    assert texts[name].count(old) == 1, f"{name} should hold {old!r} once"
    return texts | {name: texts[name].replace(old, new)}


def faults_of(texts: Mapping[str, str]) -> list[str]:
    return faults(client_of(texts["frpc.toml"]), server_of(texts["frps.toml"]))


def test_the_pair_carries_gpuserver() -> None:
    assert faults_of({file: read(file) for file in USED}) == []


@pytest.mark.parametrize("name", USED)
def test_files_hold_no_secret_and_only_the_known_variables(name: str) -> None:
    assert literal_secrets(read(name)) == []
    assert set(VARIABLE.findall(read(name))) == USED[name]


@pytest.mark.parametrize(
    "line", ['auth.token = "tutor"', "webServer.password='x'", "# was 0123456789abcdef01234567"]
)
def test_a_literal_secret_is_caught(line: str) -> None:
    assert literal_secrets(f"bindPort = 7000\n{line}\n") == [line]


@pytest.mark.parametrize("unset", [{}, {"FRP_TOKEN": "", "FRP_SERVER_ADDR": ""}])
@pytest.mark.parametrize(("name", "variable"), [(n, v) for n in USED for v in sorted(USED[n])])
def test_a_missing_variable_is_caught(name: str, variable: str, unset: dict[str, str]) -> None:
    env = {key: value for key, value in ENV.items() if key != variable}
    env |= {key: value for key, value in unset.items() if key == variable}
    with pytest.raises(LookupError, match=variable):
        render(read(name), env)


def test_another_template_is_caught() -> None:
    with pytest.raises(ValueError, match="only template"):
        render('bindPort = {{ parseNumberRange "7000" }}', ENV)


@pytest.mark.parametrize(
    ("name", "old", "new", "error"),
    [
        ("frpc.toml", "remotePort =", "remoteport =", "extra_forbidden"),
        ("frpc.toml", "serverPort =", "webServer.port = 7400\nserverPort =", "extra_forbidden"),
        ("frps.toml", "bindPort =", "httpPlugins = []\nbindPort =", "extra_forbidden"),
        ("frps.toml", "tls.force", "tls.forced", "extra_forbidden"),
        ("frpc.toml", "localPort = 9000", 'localPort = "9000"', "int_type"),
        ("frpc.toml", "tls.enable = true", 'tls.enable = "true"', "bool_type"),
        ("frps.toml", "tls.force = true", "tls.force = 1", "bool_type"),
        ("frps.toml", "[{ single = 19000 }]", "[19000]", "model_type"),
        ("frps.toml", "bindPort = 7000", "bindPort = 70000", "less_than_equal"),
        ("frpc.toml", 'type = "tcp"', 'type = "udp"', "literal_error"),
        ("frpc.toml", "localPort = 9000", "", "missing"),
    ],
)
def test_a_wrong_key_or_type_is_caught(name: str, old: str, new: str, error: str) -> None:
    with pytest.raises(ValidationError) as caught:
        faults_of(edited(name, old, new))
    assert error in {problem["type"] for problem in caught.value.errors()}


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("frpc.toml", "remotePort = 19000", "remotePort = 19001", "remotePort is not in"),
        ("frpc.toml", "{{ .Envs.FRP_TOKEN }}", "another", "the tokens differ"),
        ("frpc.toml", "tls.enable = true", "tls.enable = false", "the server forces TLS"),
        ("frps.toml", "tls.force = true", "tls.force = false", "the server does not force"),
        ("frpc.toml", "serverPort = 7000", "serverPort = 7001", "serverPort is not bindPort"),
        ("frps.toml", 'method = "token"', 'method = "oidc"', "auth.method is not token"),
        ("frpc.toml", "localPort = 9000", "localPort = 9001", "localPort is not gpuserver's"),
        ("frpc.toml", '"127.0.0.1"', '"10.0.0.5"', "localIP is not loopback"),
        ("frpc.toml", '"/health"', '"/"', "the health check is not http"),
        ("frpc.toml", "loginFailExit = false", "", "the client gives up"),
        ("frps.toml", "maxPortsPerClient = 1", "", "a client is not limited"),
    ],
)
def test_a_pair_that_does_not_fit_is_caught(name: str, old: str, new: str, fault: str) -> None:
    (found,) = faults_of(edited(name, old, new))
    assert found.startswith(fault)


def test_readme_names_every_variable_and_port() -> None:
    named = {"WEBSOCKET_URL", "MANAGEMENT_API_KEY", "7000", "19000"}.union(*USED.values())
    assert named - set(re.findall(r"\w+", read("README.md"))) == set()


def test_lines_that_readme_offers_are_accepted() -> None:
    offered = re.findall(r"```toml\n# (frp[cs]\.toml)\n(.+?)```", read("README.md"), re.DOTALL)
    assert {name for name, _ in offered} == set(USED)
    texts = {file: read(file) for file in USED}
    for name, lines in offered:
        texts[name] = lines + texts[name]
    assert faults_of(texts) == []
