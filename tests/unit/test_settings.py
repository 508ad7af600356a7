"""What the environment may say, and what is said where it says something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.commands.main import main
from service.environment import describe, hide_password, read_settings, service_links
from service.model_file import read_model
from service.settings import Settings, SettingsError

LINKS = {
    "FRESHET_SERVICE_HOST": "10.3.240.1",
    "FRESHET_SERVICE_PORT": "8000",
    "FRESHET_SERVICE_PORT_HTTP": "8000",
    "FRESHET_PORT": "tcp://10.3.240.1:8000",
    "FRESHET_PORT_8000_TCP": "tcp://10.3.240.1:8000",
    "FRESHET_PORT_8000_TCP_PROTO": "tcp",
    "FRESHET_PORT_8000_TCP_PORT": "8000",
    "FRESHET_PORT_8000_TCP_ADDR": "10.3.240.1",
    "FRESHET_SCORER_PORT_8000_TCP_ADDR": "10.3.240.1",
    "FRESHET_LEARNER_PORT": "tcp://10.3.240.2:8001",
    "FRESHET_LEARNER_SERVICE_HOST": "10.3.240.2",
}


def test_the_service_links_of_kubernetes_are_passed_over_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert read_settings(LINKS) == Settings()
    assert service_links({**LINKS, "PATH": "/bin", "REDIS_PORT": "tcp://1.2.3.4:1"}) == sorted(LINKS)
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    for name in ("STORE", "LOG"):
        monkeypatch.setenv(f"FRESHET_{name}", f"sqlite:///{tmp_path / 'f.db'}")
    main(["check"])
    assert "passed over FRESHET_SCORER_PORT_8000_TCP_ADDR" in capsys.readouterr().out


def test_a_port_that_is_set_is_no_service_link() -> None:
    assert read_settings({"FRESHET_PORT": "9000", "FRESHET_LEARNER_PORT": "9001"}).port == 9000
    for wrong in ({"FRESHET_PORT": "tcp"}, {"FRESHET_SERVICE": "x"}, {"FRESHET_PORT_NUMBER": "8000"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            read_settings(wrong)


@pytest.mark.parametrize(
    "name", ["API_KEY", "ADMIN_KEY", "REDIS_PASSWORD", "KAFKA_SASL_PASSWORD", "KAFKA_SSL_PASSWORD"]
)
@pytest.mark.parametrize("content", ["", "\n", " \r\n", "\ufeff"])
def test_a_secret_without_a_character_is_refused_in_a_variable_and_in_a_file(
    tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / "secret"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=f"FRESHET_{name}_FILE: empty"):
        read_settings({f"FRESHET_{name}_FILE": str(file)})
    if content != "\ufeff":
        with pytest.raises(SettingsError, match=f"FRESHET_{name}: empty"):
            read_settings({f"FRESHET_{name}": content})


def test_a_secret_loses_the_newline_that_it_was_mounted_with(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\ufeffs3cret\r\n", encoding="utf-8")
    assert read_settings({"FRESHET_API_KEY": "s3cret\n"}).api_key == "s3cret"
    assert read_settings({"FRESHET_API_KEY_FILE": str(tmp_path / "key")}).api_key == "s3cret"


def test_a_secret_in_the_place_of_its_path_is_not_repeated() -> None:
    for name in ("API_KEY", "REDIS_PASSWORD"):
        with pytest.raises(SettingsError, match=f"FRESHET_{name}_FILE.*path") as caught:
            read_settings({f"FRESHET_{name}_FILE": "hush-hush"})
        assert "hush" not in str(caught.value)
    with pytest.raises(SettingsError, match="/nowhere/model"):
        read_settings({"FRESHET_MODEL_FILE": "/nowhere/model"})


@pytest.mark.parametrize(
    "log",
    [
        "kafka://ann:hush@broker:9092", "kafka://broker:9092,ann:hush@other:9092", "kafka://broker:hush",
        "kafka://broker:9092/hush", "kafka://broker:9092//", "kafka://broker:9092, other:9092", "kafka://,",
        "kafka://redis://ann:hush@b", "http://ann:hush@broker",
    ],
)  # fmt: skip
def test_a_log_that_is_no_list_of_servers_is_refused_and_not_repeated(log: str) -> None:
    with pytest.raises(SettingsError, match=r"FRESHET_LOG: .*expected kafka://host:port") as caught:
        read_settings({"FRESHET_LOG": log})
    assert "hush" not in str(caught.value)


def test_a_user_in_a_log_is_told_where_it_belongs() -> None:
    with pytest.raises(SettingsError, match="FRESHET_KAFKA_SASL_USERNAME"):
        read_settings({"FRESHET_LOG": "kafka://ann:hush@broker:9092"})


@pytest.mark.parametrize(
    "log", ["kafka://broker:9092/", "kafka://broker", "kafka://[::1]:9092,b:1", "sqlite:///f.db", "sqlite:////f.db"]
)
def test_a_log_is_taken_with_a_slash_behind_it_or_without_a_port(log: str) -> None:
    assert read_settings({"FRESHET_LOG": log}).log == log


@pytest.mark.parametrize(
    "store",
    [
        "redis://:hu/sh@h:6379/0",
        "redis://:hu#sh@h",
        "redis://ann:hu@sh@h",
        "redis://h:sh",
        "redis://h/hush",
        "mysql://hush",
    ],
)
def test_a_store_that_cannot_be_read_is_refused_and_its_password_not_repeated(store: str) -> None:
    with pytest.raises(SettingsError, match=r"FRESHET_STORE: .*expected redis") as caught:
        read_settings({"FRESHET_STORE": store})
    assert "sh@" not in str(caught.value)
    assert "hu" not in str(caught.value)


@pytest.mark.parametrize(
    "store",
    [
        "redis://h", "redis://:p%2Fw@h:1/2?ssl_password=x", "rediss://ann:pw@h.example:6379/0", "redis://[::1]:6379",
        "redis+cluster://ann:pw@a:1,b:2,c:3", "unix:///run/redis.sock?db=1", "sqlite:///f.db",
    ],
)  # fmt: skip
def test_stores_of_every_kind_are_taken(store: str) -> None:
    assert read_settings({"FRESHET_STORE": store}).store == store


def test_no_password_of_a_url_is_shown_whatever_characters_it_has() -> None:
    for url in (
        "redis://ann:hu@sh@h/0", "redis://:hu/sh@h:1/0", "redis://h?password=hush", "rediss://ann:hush@a:1,b:2",
        "kafka://ann:hush@a:1,bob:hush@b:2",
    ):  # fmt: skip
        assert "sh" not in hide_password(url)
        assert "hu" not in hide_password(url)
    assert hide_password("redis://ann@h:1/2") == "redis://ann@h:1/2"
    shown = json.dumps(describe(Settings(api_key="hush", admin_key="hash", redis_password="hish")))
    assert not any(secret in shown for secret in ("hush", "hash", "hish"))


def test_an_admin_key_stands_beside_a_key_of_clients() -> None:
    assert read_settings({"FRESHET_ADMIN_KEY": "a", "FRESHET_API_KEY": "c"}).admin_key == "a"
    for environ in ({"FRESHET_ADMIN_KEY": "a"}, {"FRESHET_ADMIN_KEY": "a", "FRESHET_API_KEY": "a"}):
        with pytest.raises(SettingsError, match="FRESHET_ADMIN_KEY"):
            read_settings(environ)


def test_origins_are_origins() -> None:
    found = read_settings({"FRESHET_CORS_ORIGINS": "https://a.example, http://localhost:3000"})
    assert found.allowed_origins == ["https://a.example", "http://localhost:3000"]
    assert read_settings({"FRESHET_CORS_ORIGINS": "*"}).allowed_origins == ["*"]
    for wrong in ("a.example", "https://a.example/", "https://*.example/x", "null"):
        with pytest.raises(SettingsError, match="FRESHET_CORS_ORIGINS"):
            read_settings({"FRESHET_CORS_ORIGINS": wrong})


@pytest.mark.parametrize("prefix", ["", "a b", "{x}", "x" * 65, "ä"])
def test_a_key_prefix_has_no_braces_or_blanks(prefix: str) -> None:
    with pytest.raises(SettingsError, match="FRESHET_KEY_PREFIX"):
        read_settings({"FRESHET_KEY_PREFIX": prefix})
    assert read_settings({"FRESHET_KEY_PREFIX": "shop:eu-1"}).store_options["key_prefix"] == "shop:eu-1"


def test_a_model_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "m"\n[features]\nx = { kind = "numeric" }\n')
    assert read_model(str(file)).name == "m"
