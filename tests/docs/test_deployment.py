"""The page on deployment: its files are read, and their numbers fit the gateway and each other."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.checkout

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "deployment.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


def gateway() -> Any:
    from besteffort.gateway.config import GatewayConfig
    from besteffort.runs.config import from_mapping

    stated, _ = (yaml.safe_load(block) for block in blocks("yaml"))
    return from_mapping(GatewayConfig, stated, str(PAGE))


def deployment() -> Any:
    _, stated = (yaml.safe_load(block) for block in blocks("yaml"))
    return stated["spec"]["template"]["spec"]


def test_a_supervisor_waits_longer_than_the_gateway_drains() -> None:
    (unit,) = blocks("ini")
    service = configparser.RawConfigParser()
    service.optionxform = str  # type: ignore[assignment, method-assign]
    service.read_string(unit)
    listen = gateway().listen
    assert service.getfloat("Service", "TimeoutStopSec") > listen.drain_s
    assert service.getint("Service", "LimitNOFILE") > listen.requests + listen.connections
    (container,) = deployment()["containers"]
    _, waits = container["lifecycle"]["preStop"]["exec"]["command"]
    assert deployment()["terminationGracePeriodSeconds"] > float(waits) + listen.drain_s


def test_probes_ask_what_there_is() -> None:
    from besteffort.gateway import server

    (container,) = deployment()["containers"]
    source = Path(server.__file__).read_text("utf-8")
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert f'add_get("{asked["path"]}"' in source
        assert asked["port"] == gateway().listen.port == container["ports"][0]["containerPort"]


def test_keys_and_arguments_are_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from besteffort.gateway import __main__ as light
    from besteffort.gateway import command

    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr(command, "serve", lambda *given: started.append(given))
    (unit,) = blocks("ini")
    (starts,) = re.findall(r"^ExecStart=\S+/besteffort-gateway (.+)$", unit, re.M)
    for arguments in (starts.split(), deployment()["containers"][0]["args"]):
        monkeypatch.setattr("sys.argv", ["besteffort-gateway", *arguments])
        assert light.main() == 0
    assert [(path, workers) for path, _, workers in started] == [("/etc/besteffort/gateway.yaml", 2)] * 2
    assert [key.env for key in gateway().keys] == ["TEAM_KEY"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    (unit,) = blocks("ini")
    file = tmp_path / "besteffort.service"
    # What it starts is not installed here, and its user is not known.
    file.write_text(re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", unit, flags=re.M))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "besteffort.service" in line], done.stderr
