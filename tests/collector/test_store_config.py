from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, parse

import pytest
from clickhouse_connect.driver.client import Client

DEPLOY = Path(__file__).parents[2] / "deploy" / "clickhouse"
FILES = sorted(DEPLOY.rglob("*.xml"))
SECTIONS = {"logger", "access_control_improvements", "remote_servers", "macros", "zookeeper", "profiles", "users"}
IMPROVEMENTS = {"select_from_system_db_requires_grant", "select_from_information_schema_requires_grant"}


def root(name: str) -> Element:
    return parse(DEPLOY / name).getroot()  # noqa: S314  (our own file)


def sections(names: set[str]) -> Iterator[Element]:
    return (
        child
        for name in ("config.d/costspan.xml", "cluster.xml", "users.d/costspan.xml")
        for child in root(name)
        if child.tag in names
    )


def known(client: Client, table: str) -> set[str]:
    return {row[0] for row in client.query(f"SELECT name FROM system.{table}").result_rows}  # noqa: S608  (names from this file)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_well_formed(path: Path) -> None:
    assert parse(path).getroot().tag == "clickhouse"  # noqa: S314  (our own file)


def test_every_setting_exists(store: Client) -> None:
    config = root("config.d/costspan.xml")
    plain = {child.tag for child in config if child.tag not in SECTIONS and not child.tag.endswith("_log")}
    assert plain
    assert plain <= known(store, "server_settings")
    profiles = {each.tag for section in sections({"profiles"}) for profile in section for each in profile}
    assert profiles
    assert profiles <= known(store, "settings")
    assert {each.tag for section in sections({"access_control_improvements"}) for each in section} == IMPROVEMENTS
    assert {each.tag for section in sections({"logger"}) for each in section} == {"level", "size", "count"}


def test_every_log_of_clickhouse_is_off_or_goes_after_some_days(store: Client) -> None:
    logs = [child for child in root("config.d/costspan.xml") if child.tag.endswith("_log")]
    for log in logs:
        store.command(f"SYSTEM FLUSH LOGS {log.tag}")  # an unknown one is an error
        assert log.attrib == ({"remove": "1"} if len(log) == 0 else {"replace": "1"})
        if len(log):
            assert "INTERVAL" in log.findtext("ttl", "")
            assert "ttl_only_drop_parts = 1" in log.findtext("settings", "")
    kept = {log.tag for log in logs if len(log)}
    assert kept == {"query_log", "part_log", "backup_log", "crash_log"}
    assert {"trace_log", "text_log", "metric_log", "asynchronous_metric_log", "processors_profile_log"} <= {
        log.tag for log in logs
    } - kept


def test_a_log_that_does_not_exist_would_be_noticed(store: Client) -> None:
    with pytest.raises(Exception, match="does not exist"):
        store.command("SYSTEM FLUSH LOGS no_such_log")


def test_the_cluster_of_the_example_has_a_secret_so_that_policies_hold() -> None:
    for cluster in (each for section in sections({"remote_servers"}) for each in section):
        secret = cluster.find("secret")
        assert secret is not None
        assert secret.get("from_env")
        assert {shard.findtext("internal_replication") for shard in cluster.iter("shard")} == {"true"}
