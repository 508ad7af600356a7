"""Spark's session of this process, or in words why there is none."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from socket import create_connection
from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkConf
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

_ANSWER_S = 10.0
_PARTITIONS = "spark.sql.shuffle.partitions"
# Bytes of files of which the tables of a partition are: of packed files these are some five times as many.
_FILES_TOGETHER = 16 << 20
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
}


def spark_session(master: str | None, options: Mapping[str, str]) -> Any:
    """The session of this process; the first call starts it, and it ends with the process.

    Parameters
    ----------
    master
        As Spark knows it, such as ``local[2]`` or ``spark://host:7077``. None: what `spark-submit` or
        ``spark-defaults.conf`` say, else this machine.
    options
        More of Spark's configuration.

    Raises
    ------
    ValueError
        If there is no Java, the master does not answer, or it is none that Spark knows.
    """
    conf = SparkConf().setAppName("freshet").set("spark.ui.showConsoleProgress", str(sys.stderr.isatty()).lower())
    if master is not None:
        conf.setMaster(master)
    if master is not None and master.startswith("local"):
        # Executors are on this machine, and Python is the same.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        conf.setAll(list(_LOCAL.items()))
    conf.setAll(list(options.items()))
    said_master = conf.get("spark.master") or "of Spark's own configuration"
    _require_answer(said_master)
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ValueError("--engine spark: no java is found: expected Java 17 or newer, in PATH or at JAVA_HOME")
    try:
        session = SparkSession.builder.config(conf=conf).getOrCreate()
    except (Py4JError, PySparkException) as exc:
        # Its first line says it; a traceback of Java follows.
        said = str(getattr(exc, "java_exception", None) or exc).strip().partition("\n")[0]
        raise ValueError(f"--engine spark, --master {said_master!r}: Spark does not start: {said}") from exc
    atexit.register(session.stop)
    session.sparkContext.setLogLevel("ERROR")
    return session


def spread(session: Any, sizes: Iterable[int]) -> None:
    """Partition a session's tables as suits files of these sizes, asked for unless Spark's configuration says how many.

    All of a user is in one partition: what is joined by users, and by more that is the same, stays where it is.
    """
    if not session.sparkContext.getConf().contains(_PARTITIONS):
        n_parts = max(sum(sizes) // _FILES_TOGETHER + 1, session.sparkContext.defaultParallelism)
        session.conf.set(_PARTITIONS, str(n_parts))
    session.conf.set("spark.sql.requireAllClusterKeysForCoPartition", "false")


def _require_answer(master: str) -> None:
    """Raise `ValueError` where no host of ``spark://host:port,host:port`` answers, which Spark waits a minute for."""
    hosts = master.removeprefix("spark://").split(",") if master.startswith("spark://") else []
    errors: list[OSError] = []
    for host in hosts:
        name, _, port = host.rpartition(":")
        try:
            create_connection((name.strip("[]"), int(port)), _ANSWER_S).close()
            return
        except OSError as exc:
            errors.append(exc)
        except ValueError:
            raise ValueError(f"--engine spark, --master {master!r}: expected spark://host:port") from None
    if errors:
        raise ValueError(
            f"--engine spark, --master {master!r}: no master answers there ({errors[0]}): expected the URL that the "
            "master's log and web page have, and a network in between"
        )
