"""Real servers for the tests: Debian's Redis and Apache's Kafka, each on a port and a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import redis

KAFKA_VERSION = "4.1.0"
OLD_KAFKA_VERSION = "2.8.2"
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
{}</dependencies></project>
"""
_DEPENDENCY = (
    "<dependency><groupId>org.apache.kafka</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
)


class Missing(Exception):
    """A server cannot be run here; the message says what to install."""


def eventually(check: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Poll a condition until it holds; `what` says which, or is asked at the end if it does not."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1, which is its own authority."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


class Server:
    """A process that listens on one port of the loopback."""

    name = "server"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self, seconds: float = 180) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as output:
            self._process = subprocess.Popen(self.command(), cwd=self.folder, stdout=output, stderr=output)
        process = self._process
        eventually(lambda: answers(self.port) or process.poll() is not None, seconds, f"{self.name} listens")
        if process.poll() is not None:
            raise AssertionError(f"{self.name} ended: {(self.folder / f'{self.name}.log').read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class RedisServer(Server):
    """Redis with every write in the append-only file before it is answered."""

    name = "redis"

    def command(self) -> list[str]:
        found = shutil.which("redis-server")
        if found is None:
            raise Missing("redis-server is not installed (Debian: apt-get install redis-server)")
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes", "save": ""}
        return [found, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]

    def url(self, db: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{db}"


def cluster_options(port: int) -> list[str]:
    """Options of a Redis server that is to be a node of a cluster."""
    # The cluster's bus has its own port; the usual one lies 10,000 above and may be out of range.
    bus = port + 10_000 if port < 55_000 else port - 10_000
    return ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", str(bus)]


def _is_up(node: redis.Redis) -> bool:
    return bool(node.cluster("INFO")["cluster_state"] == "ok")


def join_cluster(nodes: Sequence[RedisServer]) -> str:
    """Make a cluster of servers that were started for one; returns the URL of the store on it."""
    places = [f"127.0.0.1:{node.port}" for node in nodes]
    subprocess.run(
        ["redis-cli", "--cluster", "create", *places, "--cluster-yes"], check=True, capture_output=True, timeout=60
    )
    for node in nodes:
        probe = redis.Redis(port=node.port)
        eventually(partial(_is_up, probe), 30, "the cluster is up")
        probe.close()
    return "redis+cluster://" + ",".join(places)


class PrometheusServer(Server):
    """Prometheus on the file prometheus.yml of its folder."""

    name = "prometheus"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if missing := [one for one in ("prometheus", "promtool") if shutil.which(one) is None]:
            raise Missing(f"{' and '.join(missing)} not installed (Debian: apt-get install prometheus)")

    def command(self) -> list[str]:
        return [
            "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip


class Broker(Server):
    """A node of Kafka."""

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"


class KafkaServer(Broker):
    """One node in KRaft mode."""

    name = "kafka"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._libs = _kafka_libs(KAFKA_VERSION, "kafka_2.13", "kafka-tools")
        controller = free_port()
        self._config = folder / "server.properties"
        self._config.write_text(
            f"""\
process.roles=broker,controller
node.id=1
{self.listeners(controller)}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs={folder / "kafka-data"}
num.partitions=3
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=4194304
group.min.session.timeout.ms=1000
"""
        )
        format_log = ["kafka.tools.StorageTool", "format", "-t", str(uuid.uuid4()), "-c", str(self._config)]
        format_log += self.accounts
        subprocess.run([*self._java(), *format_log], check=True, capture_output=True)

    accounts: Sequence[str] = ()
    """Options that make accounts when the log is formatted."""

    def listeners(self, controller: int) -> str:
        """The lines on where and how it listens."""
        return f"""\
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"""

    def command(self) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self._config)]

    def _java(self) -> list[str]:
        return ["java", "-Xmx512m", "-cp", f"{self._libs}/*"]


class ZooKeeperServer(Server):
    """What Kafka kept its metadata in; of Kafka's own dependencies."""

    name = "zookeeper"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._libs = _kafka_libs(OLD_KAFKA_VERSION, "kafka_2.13")

    def command(self) -> list[str]:
        options = ["-Xmx128m", "-Dzookeeper.admin.enableServer=false", "-cp", f"{self._libs}/*"]
        data = str(self.folder / "zookeeper-data")
        return ["java", *options, "org.apache.zookeeper.server.ZooKeeperServerMain", str(self.port), data]


class OldKafkaServer(Broker):
    """One node with ZooKeeper that gives topics no ids, and writes records in format v1, as of before Kafka 0.11."""

    name = "old-kafka"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._zookeeper = ZooKeeperServer(folder)
        self._libs = _kafka_libs(OLD_KAFKA_VERSION, "kafka_2.13")
        self._config = folder / "old.properties"
        self._config.write_text(
            f"""\
broker.id=1
zookeeper.connect=127.0.0.1:{self._zookeeper.port}
listeners=PLAINTEXT://127.0.0.1:{self.port}
log.dirs={folder / "old-kafka-data"}
inter.broker.protocol.version=2.7
log.message.format.version=0.10.2
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""
        )

    def start(self, seconds: float = 180) -> None:
        self._zookeeper.start(seconds)
        super().start(seconds)

    def stop(self, number: int = signal.SIGTERM) -> None:
        super().stop(number)
        self._zookeeper.stop(number)

    def command(self) -> list[str]:
        return ["java", "-Xmx256m", "-cp", f"{self._libs}/*", "kafka.Kafka", str(self._config)]


def spark_home(folder: Path) -> Path:
    """A home for Spark, whose cluster on one machine writes its executors' logs there.

    Raises
    ------
    Missing
        If Spark cannot be run.
    """
    if shutil.which("java") is None:
        raise Missing("java not installed (Debian: apt-get install openjdk-17-jre-headless)")
    if absent := [name for name in ("pyspark", "pandas") if find_spec(name) is None]:
        raise Missing(f"{' and '.join(absent)} not installed: pip install 'freshet-online[spark]'")
    installed = Path(str(find_spec("pyspark").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    home = folder / "spark"
    home.mkdir()
    for name in ("bin", "jars", "python", "sbin"):
        (home / name).symlink_to(installed / name)
    return home


def _kafka_libs(version: str, *artifacts: str) -> Path:
    """The folder with Kafka's jars, fetched once by Maven."""
    # Those of the present version may be elsewhere.
    given = os.environ.get("KAFKA_LIBS") if version == KAFKA_VERSION else None
    libs = Path(given) if given else Path.home() / ".cache" / "freshet" / f"kafka-{version}"
    missing = [command for command in ("java", "mvn") if shutil.which(command) is None]
    ready = libs / "complete"
    if "java" in missing or (missing and not ready.exists()):
        raise Missing(f"{' and '.join(missing)} not installed (Debian: apt-get install openjdk-17-jre-headless maven)")
    if not ready.exists():
        libs.mkdir(parents=True, exist_ok=True)
        # Tests run in several processes, and Maven's repository is for one at a time.
        with (libs.parent / "maven.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                _fetch(version, artifacts, libs)
                ready.touch()
    return libs


def _fetch(version: str, artifacts: Sequence[str], libs: Path) -> None:
    (libs / "pom.xml").write_text(_POM.format("".join(_DEPENDENCY.format(one, version) + "\n" for one in artifacts)))
    command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={libs}"]
    done = subprocess.run(command, cwd=libs, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"Maven could not fetch Kafka {version}: {done.stdout[-500:]}")
