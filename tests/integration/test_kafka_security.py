"""Kafka behind TLS and an account, reached by settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from learner.log import Entry, LogUnavailable, open_log, open_reader
from service.environment import read_settings
from service.settings import Settings
from tests.servers import KafkaServer, certificate, eventually, free_port


class Secured(KafkaServer):
    """Clients come by TLS with a certificate of their own, and say who they are by SCRAM."""

    accounts = ("--add-scram", "SCRAM-SHA-512=[name=freshet,password=s3cret]")

    def listeners(self, controller: int) -> str:
        key, cert = certificate(self.folder)
        (self.folder / "both.pem").write_text(key.read_text() + cert.read_text())
        inner = free_port()
        return f"""\
listeners=SASL_SSL://127.0.0.1:{self.port},INNER://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_SSL://127.0.0.1:{self.port},INNER://127.0.0.1:{inner}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,INNER:PLAINTEXT,SASL_SSL:SASL_SSL
inter.broker.listener.name=INNER
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={self.folder / "both.pem"}
ssl.truststore.type=PEM
ssl.truststore.location={cert}
ssl.client.auth=required"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, kafka_server: KafkaServer) -> Iterator[Secured]:
    server = Secured(tmp_path_factory.mktemp("secured"))
    server.start()
    yield server
    server.stop()


def settings(server: Secured, password: Path, **others: str) -> Settings:
    return read_settings(
        {
            "FRESHET_LOG": server.url,
            "FRESHET_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "FRESHET_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "FRESHET_KAFKA_SASL_USERNAME": "freshet",
            "FRESHET_KAFKA_SASL_PASSWORD_FILE": str(password),
            "FRESHET_KAFKA_SSL_CAFILE": str(server.folder / "cert.pem"),
            "FRESHET_KAFKA_SSL_CERTFILE": str(server.folder / "cert.pem"),
            "FRESHET_KAFKA_SSL_KEYFILE": str(server.folder / "key.pem"),
            **others,
        }
    )


def test_events_pass_by_tls_under_an_account_whose_password_is_in_a_file(secured: Secured, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    chosen = settings(secured, password)
    log = open_log(chosen.log, **chosen.kafka_options)
    log.append([Entry("events", b"k", b"v")])
    log.close()
    reader = open_reader(chosen.log, ["events"], "g", **chosen.reader_options)
    found: list[bytes] = []

    def read() -> bool:
        found.extend(message.value for message in reader.poll(200, 10))
        return bool(found)

    eventually(read, 30, "the event is read")
    assert found == [b"v"]
    reader.close()


@pytest.mark.parametrize("wrong", ["password", "authority"])
def test_a_wrong_password_or_an_unknown_authority_is_unavailable(secured: Secured, tmp_path: Path, wrong: str) -> None:
    password = tmp_path / "password"
    password.write_text("guess" if wrong == "password" else "s3cret")
    # Without a file of its own, the system's authorities count, and they do not know this one.
    others = {"FRESHET_KAFKA_SSL_CAFILE": ""} if wrong == "authority" else {}
    chosen = settings(secured, password, **others)
    log = open_log(chosen.log, **chosen.kafka_options)
    with pytest.raises(LogUnavailable) as caught:
        log.append([Entry("events", b"k", b"v")])
    assert "guess" not in str(caught.value)
    log.close()
