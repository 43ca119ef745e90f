"""A hostile holder of a read key: every way that we know to see another project's rows, or to do anything but read."""

# ruff: noqa: S608  (statements are what is tested)
from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import NamedTuple

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from costspan import semconv
from costspan_collector.security.keys import FILE, changing, make
from tests.collector.harness import Running

_SECRET = "other-secret"  # noqa: S105  (what another project would not show)
_FILE = "/etc/passwd"
_SPANS = f"""
    INSERT INTO spans (project, trace_id, span_id, name, kind, start_ns, duration_ns, tenant, attributes)
    SELECT
        if(number % 2, 'other', 'mine'), toString(number), toString(number), 'n', 'generation', number, number,
        if(number % 2, '{_SECRET}', '7'),
        map(if(number % 2, '{_SECRET}', 'k'), 'v', '{semconv.CALL_START}', '1')
    FROM numbers(20000)
"""


class Shop(NamedTuple):
    """A store with rows of two projects, and somebody with a key."""

    store: str
    tokens: dict[str, str]

    def ask(self, sql: str, key: str = "mine", **parameters: str) -> httpx.Response:
        headers = {"X-ClickHouse-User": "grafana", "X-ClickHouse-Key": self.tokens[key]}
        return httpx.post(self.store, content=sql.encode(), params=parameters, headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    data = tmp_path_factory.mktemp("readers") / "data"
    data.mkdir()
    tokens = {}
    with changing(data / FILE) as keys:
        for name, project, reads, writes in (
            ("admin", "", True, True),
            ("auditor", "", True, False),
            ("mine", "mine", True, False),
            ("both", "mine", True, True),
            ("zeta", "zeta", True, False),
            ("writer", "mine", False, True),
        ):
            key, tokens[name] = make(name=name, project=project, reads=reads, writes=writes)
            keys.append(key)
    running = Running(data)
    shop = Shop(running.store, tokens)
    for statement in (
        _SPANS,
        "INSERT INTO prices (project, sku) VALUES ('', 'gpu'), ('mine', 'gpu'), ('other', 'other-gpu')",
        "CREATE TABLE scratch (project String, secret String) ENGINE = MergeTree ORDER BY project",
        f"INSERT INTO scratch VALUES ('mine', '{_SECRET}')",
        f"CREATE TABLE pad ENGINE = Memory AS SELECT '{_SECRET}' AS secret",
        "CREATE VIEW leaky DEFINER = CURRENT_USER SQL SECURITY DEFINER AS SELECT * FROM spans",
    ):
        answer = shop.ask(statement, "admin")
        assert answer.status_code == 200, answer.text
    yield shop
    assert shop.ask("SELECT count(), uniq(project) FROM spans", "admin").text == "20000\t2\n"  # nothing of all this changed it
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("sql", "result"),
    [
        ("SELECT count(), uniq(project), min(project) FROM spans", "10000\t1\tmine"),
        ("SELECT count(*) FROM default.spans", "10000"),
        ("SELECT count(), uniq(tenant) FROM calls", "10000\t1"),
        ("SELECT count() FROM spans WHERE project = 'other'", "0"),
        ("SELECT count() FROM spans WHERE project != 'mine' OR 1", "10000"),
        ("SELECT min(start_ns), max(start_ns), max(duration_ns) FROM spans", "0\t19998\t19998"),
        ("WITH x AS (SELECT * FROM spans) SELECT uniq(project) FROM x", "1"),
        ("WITH x AS (SELECT 1 AS a) SELECT * FROM x UNION ALL SELECT * FROM x", "1\n1"),
        ("WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT count() FROM r", "5"),
        ("SELECT count() FROM (SELECT * FROM spans UNION ALL SELECT * FROM default.spans)", "20000"),
        ("SELECT uniq(a.project), uniq(b.project) FROM spans a FULL JOIN spans b ON a.start_ns = b.start_ns + 1", "2\t2"),
        ("SELECT countIf(b.project = 'other') FROM spans a FULL JOIN spans b ON a.start_ns = b.start_ns + 1", "0"),
        (f"SELECT '{_SECRET}' IN (SELECT tenant FROM spans)", "0"),
        ("SELECT count() FROM spans WHERE tenant IN (SELECT tenant FROM calls) AND tenant IN ('7', 'x')", "10000"),
        ("SELECT arraySort(groupUniqArray(arrayJoin(mapKeys(attributes)))) FROM spans", f"['{semconv.CALL_START}','k']"),
        ("SELECT tenant, count() FROM spans GROUP BY tenant WITH TOTALS", "7\t10000\n\n\t10000"),
        ("SELECT project, sku FROM prices ORDER BY ALL", "\tgpu\nmine\tgpu"),
        # An expression that would fail, or tell, on rows that are not shown: the row policy comes first, always.
        ("SELECT count() FROM spans WHERE throwIf(project = 'other') = 0", "10000"),
        ("SELECT count() FROM spans PREWHERE throwIf(project = 'other') = 0", "10000"),
        (f"SELECT count() FROM spans PREWHERE throwIf(tenant = '{_SECRET}') = 0", "10000"),
        ("SELECT sum(toUInt8(tenant)) FROM spans", "70000"),
        ("SELECT count() FROM spans PREWHERE toUInt8(tenant) = 7", "10000"),
        ("SELECT count() FROM spans PREWHERE intDiv(1, project = 'mine') = 1", "10000"),
        (f"SELECT count() FROM spans WHERE arrayExists(k -> throwIf(k = '{_SECRET}') = 1, mapKeys(attributes))", "0"),
        (f"SELECT tenant, throwIf(tenant = '{_SECRET}'), count() FROM spans GROUP BY tenant", "7\t0\t10000"),
        # A condition that matched nothing of one project is not remembered for another.
        ("SELECT count() FROM spans WHERE start_ns % 1000 = 1", "0"),
        ("SELECT count() FROM spans WHERE start_ns % 1000 = 2", "20"),
        # What a dashboard needs.
        ("SELECT name FROM system.databases", "default"),
        ("SELECT count() FROM system.columns WHERE table = 'scratch' OR database != 'default'", "0"),
        ("SELECT engine FROM system.tables WHERE database = 'default' AND name = 'spans'", "MergeTree"),
        ("SELECT tables.name FROM system.tables WHERE name IN ('scratch', 'pad', 'leaky', 'calls')", "calls"),
        ("SELECT count() > 5 FROM system.tables AS t JOIN system.columns AS c ON t.name = c.table", "1"),
        ("EXISTS TABLE spans", "1"),
        ("SELECT toTypeName(1), timezone() != '', currentDatabase(), version() != ''", "UInt8\t1\tdefault\t1"),
        ("SELECT sumIf(1, 1), quantilesExactIf(0.5)(n, 1), uniqArrayIf([n], 1) FROM (SELECT 1 AS n)", "1\t[1]\t1"),
        (
            "SELECT CASE 1 WHEN 1 THEN 2 END, CASE WHEN 0 THEN 1 ELSE 3 END, rank() OVER (), [5, 6][2], 'a' ILIKE 'A'",
            "2\t3\t1\t6\t1",
        ),
        ("SELECT 18446744073709551615, 0.1, 1e300, toDecimal64('1.10', 2), 'q\\'\\n\\\\', [NULL, 1], {x:Int8}", None),
        ("SELECT * APPLY(sum) APPLY(x -> x + 1) FROM (SELECT 1 AS a)", "2"),
        ("SELECT * EXCEPT(a) REPLACE(7 AS b) FROM (VALUES (1, 2)) AS t(a, b)", "7"),
        ("SELECT sum(n) FILTER (WHERE n > 1) FROM (SELECT arrayJoin([1, 2, 3]) AS n)", "5"),
        ("SELECT n FROM (SELECT 1 AS n) ORDER BY n WITH FILL FROM 0 TO 3", "0\n1\n2"),
        ("SELECT sum(n) OVER w FROM (SELECT arrayJoin([1, 2]) AS n) WINDOW w AS (ORDER BY n)", "1\n3"),
        ("SELECT a, count() FROM (SELECT 1 AS a) GROUP BY GROUPING SETS ((a), ()) ORDER BY a", "0\t1\n1\t1"),
        ("SELECT x FROM (SELECT [1, 2] AS y) ARRAY JOIN y AS x LIMIT 1 BY x", "1\n2"),
        ("SELECT 1 INTERSECT SELECT 1", "1"),
        ("SELECT 1 AS `a b`, 'FORMAT JSON' -- FORMAT TSV", "1\tFORMAT JSON"),
    ],
)
def test_a_reader_sees_its_own_rows(shop: Shop, sql: str, result: str | None) -> None:
    parameters = {"param_x": "3"} if "{x:" in sql else {}
    answer = shop.ask(sql, **parameters)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip("\n") == (shop.ask(sql, "admin", **parameters).text.rstrip("\n") if result is None else result)


def test_each_project_its_own(shop: Shop) -> None:
    assert shop.ask("SELECT count() FROM spans", "zeta").text == "0\n"
    assert shop.ask("SELECT count() FROM spans", "both").text == "10000\n"
    assert shop.ask("SELECT count() FROM spans", "auditor").text == "20000\n"
    assert shop.ask("SELECT count() FROM spans WHERE start_ns % 1000 = 1", "auditor").text == "20\n"
    assert shop.ask("SELECT total_rows FROM system.tables", "auditor").status_code == 404


@pytest.mark.parametrize(
    "sql",
    [
        # By another name, or from inside.
        "WITH scratch AS (SELECT * FROM scratch) SELECT * FROM scratch",
        "SELECT (WITH scratch AS (SELECT 1) SELECT count() FROM scratch), (SELECT count() FROM scratch)",
        "WITH later AS (SELECT * FROM scratch), scratch AS (SELECT 1) SELECT * FROM later",
        "WITH 1 AS scratch SELECT * FROM scratch",
        f"WITH 1 AS scratch SELECT ('mine', '{_SECRET}') IN scratch",
        f"SELECT ('mine', '{_SECRET}') IN scratch",
        f"SELECT ('mine', '{_SECRET}') IN (default.scratch)",
        f"SELECT '{_SECRET}' NOT IN pad",
        f"SELECT globalNullIn('{_SECRET}', pad)",
        f"SELECT in('{_SECRET}', pad)",
        "SELECT * FROM leaky",
        "SELECT * FROM landing_spans",
        "SELECT * FROM {t:Identifier}",
        "SELECT {t:Identifier} FROM spans",
        "SELECT 1 IN {t:Identifier}",
        # The engine's own books.
        *(
            f"SELECT * FROM {table}"
            for table in (
                "system.parts", "system.processes", "system.parts_columns", "`system`.`parts`", '"system"."query_log"',
                "system.users", "system.row_policies", "system.errors", "system.stack_trace", "system.metrics",
                "system.merges", "system.mutations", "information_schema.tables", "INFORMATION_SCHEMA.TABLES",
                "system.part_log", "system.query_condition_cache",
            )
        ),
        "SELECT count() IN system.parts FROM spans",
        "SELECT 1 IN `system`.`parts`",
        "SELECT total_rows FROM system.tables",
        "SELECT tables.total_bytes FROM system.tables",
        "SELECT COLUMNS('total') FROM system.tables",
        "SELECT data_compressed_bytes FROM system.columns",
        "SELECT (SELECT count() FROM system.parts)",
        "SELECT * REPLACE((SELECT count() FROM system.parts) AS name) FROM spans",
        "SELECT 1 FROM spans LIMIT (SELECT count() FROM system.parts)",
        "SELECT 1 FROM spans ORDER BY start_ns WITH FILL FROM (SELECT count() FROM system.parts)",
        "SELECT 1 FROM spans ORDER BY start_ns WITH FILL INTERPOLATE (name AS (SELECT count() FROM system.parts))",
        "SELECT 1 FROM spans QUALIFY (SELECT count() FROM system.parts) > 0",
        "SELECT number FROM numbers((SELECT count() FROM system.parts))",
        "SELECT sum(1) OVER (ORDER BY (SELECT count() FROM system.parts)) FROM spans",
        "SELECT 1 FROM spans ARRAY JOIN (SELECT groupArray(name) FROM system.parts) AS x",
        "SELECT 1 FROM spans JOIN system.parts ON 1",
        "SELECT 1 UNION ALL (SELECT 2 EXCEPT SELECT count() FROM system.parts)",
        "SHOW PROCESSLIST", "SHOW MERGES", "SHOW CLUSTERS", "SHOW SETTINGS LIKE '%'", "SHOW GRANTS", "SHOW INDEX FROM spans",
        "SHOW ENGINES", "SHOW USERS",
        "SHOW TABLES WHERE (SELECT count() FROM system.parts) > 0",
        "SHOW COLUMNS FROM spans WHERE (SELECT count() FROM system.parts) > 0",
        "SHOW COLUMNS FROM parts FROM system", "SHOW CREATE TABLE scratch", "EXISTS TABLE scratch", "DESCRIBE TABLE scratch",
        # How many rows there are of all projects.
        "EXPLAIN SELECT count() FROM spans", "EXPLAIN ESTIMATE SELECT * FROM spans", "CHECK TABLE spans",
        "EXPLAIN indexes = 1 SELECT * FROM spans WHERE project = 'other'", "EXPLAIN AST SELECT 1", "EXPLAIN PIPELINE SELECT 1",
        "SELECT * FROM (EXPLAIN ESTIMATE SELECT * FROM spans)",
        "SELECT max(_part_offset) FROM spans", "SELECT _part FROM spans", "SELECT s._part_offset FROM spans AS s",
        "SELECT * FROM spans s JOIN spans t USING (_part_offset)", "SELECT _block_number FROM spans",
        "SELECT 1 FORMAT JSONEachRowWithProgress",
        # Values of columns beside the rows that are shown.
        "SELECT lowCardinalityKeys(tenant) FROM spans", "SELECT dumpColumnStructure(tenant) FROM spans",
        "SELECT blockSerializedSize(tenant) FROM spans",
        # Table functions.
        *(
            f"SELECT * FROM {function}"
            for function in (
                "merge('default', '^spans$')", "merge(currentDatabase(), 'spans')", "loop(spans)", "view(SELECT * FROM spans)",
                "viewIfPermitted(SELECT * FROM spans ELSE null('x Int8'))", "mergeTreeIndex('default', 'spans')",
                f"file('{_FILE}', 'LineAsString')", f"File('{_FILE}')", "url('http://127.0.0.1:1/', 'LineAsString')",
                "remote('127.0.0.1', 'default.spans')", "cluster('default', 'default.spans')",
                "executable('x', 'TSV', 'a String')",
                "python('x')", "Python(self)", "input('a Int8')", "dictionary('x')", "generateRandom('a String')",
                "eval('SELECT * FROM system.parts')", "sqlite('x', 'y')", "fuzzQuery('SELECT 1')", f"`{_FILE}`",
                f"default.`{_FILE}`",
                "s3('http://127.0.0.1:1/x')", "viewExplain('EXPLAIN ESTIMATE', '', (SELECT * FROM spans))",
            )
        ),
        f"SELECT 1 IN `{_FILE}`", f"DESCRIBE file('{_FILE}')", f"DESCRIBE (SELECT file('{_FILE}'))", f"DESCRIBE `{_FILE}`",
        # Functions.
        *(
            f"SELECT {call}"
            for call in (
                f"file('{_FILE}')", f"FILE('{_FILE}')", f"arrayMap(x -> file(x), ['{_FILE}'])", "dictGet('x', 'y', 1)",
                "joinGet('x', 'y', 1)", "hasColumnInTable('127.0.0.1:9000', 'default', 'spans', 'x')", "getMacro('x')",
                "getServerSetting('path')", "getSetting('query_cache_tag')", "hostName()", "filesystemAvailable()", "sleep(3)",
                "sleepEachRow(1)", "addressToLine(1)", "aiGenerate('x')", "catboostEvaluate('/x', 1)", "regionToName(1)",
                "__actionName('a', 'b')", "queryID()", "no_such_function()", "uptime()", "tcpPort()",
            )
        ),
        f"SELECT * APPLY(x -> file('{_FILE}')) FROM spans",
        f"SELECT * APPLY(file) FROM (SELECT '{_FILE}' AS a)",
        f"SELECT COLUMNS('a') APPLY file FROM (SELECT '{_FILE}' AS a)",
        f"WITH x -> file(x) AS f SELECT f('{_FILE}')",
        f"SELECT * EXCEPT(a) REPLACE(file('{_FILE}') AS b) FROM (SELECT 1 AS a, 2 AS b)",
        "SELECT * APPLY(lowCardinalityKeys) FROM (SELECT tenant FROM spans)",
        "SELECT COLUMNS('_part_offset') FROM spans",
        "SELECT @@version",
        f"SELECT sum(1) FILTER (WHERE file('{_FILE}') != '')",
        f"SELECT * FROM values('a String', file('{_FILE}'))",
        "SELECT 1 = ANY (SELECT count() FROM system.parts)",
        "SELECT 1 FROM spans STREAM",
        "SELECT 1 FROM spans WINDOW w AS (ORDER BY file('x'))",
        # Settings.
        "SELECT uniq(project) FROM spans SETTINGS query_cache_tag = ''",
        "SELECT uniq(project) FROM (SELECT * FROM spans SETTINGS query_cache_tag = '')",
        "WITH x AS (SELECT * FROM spans SETTINGS query_cache_tag = '') SELECT uniq(project) FROM x",
        "SELECT uniq(project) FROM spans SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 100000", "SELECT 1 FORMAT JSON SETTINGS query_cache_tag = ''",
        "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE spans", "SELECT 1 PARALLEL WITH DROP TABLE spans",
        f"SELECT 1 INTO OUTFILE '{_FILE}.x'", "SELECT 1 FORMAT Template", "SELEC", "SELECT 'unended", "SELECT /* 1",
    ],
)  # fmt: skip
def test_a_reader_gets_nothing_else(shop: Shop, sql: str) -> None:
    answer = shop.ask(sql, **({"param_t": "scratch"} if "{t:" in sql else {}))
    assert 400 <= answer.status_code < 500 or answer.status_code == 501, (sql, answer.text)
    assert _SECRET not in answer.text.replace(sql, "")
    assert "parseQueryToJSON" not in answer.text
    assert "root:" not in answer.text
    assert int(answer.headers["X-ClickHouse-Exception-Code"])


@pytest.mark.parametrize(
    "sql",
    [
        "SET query_cache_tag = ''", "SET readonly = 0", "USE system", "INSERT INTO spans (project) VALUES ('other')",
        "INSERT INTO spans (project) SELECT 'x'", 'INSERT INTO spans FORMAT JSONEachRow {"project": "x"}',
        "INSERT INTO FUNCTION file('/tmp/x.csv') SELECT 1", "CREATE TABLE z (a Int8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE z (a Int8)", "CREATE VIEW z AS SELECT 1", "CREATE FUNCTION z AS x -> x",
        "CREATE ROW POLICY p ON spans USING 1",
        "CREATE DICTIONARY d (a Int8) PRIMARY KEY a SOURCE(NULL()) LAYOUT(FLAT()) LIFETIME(1)",
        "ALTER TABLE spans DELETE WHERE 1", "ALTER TABLE spans DROP COLUMN name", "ALTER TABLE spans FREEZE",
        "DELETE FROM spans WHERE 1", "UPDATE spans SET name = 'x' WHERE 1", "TRUNCATE TABLE spans", "DROP TABLE spans",
        "RENAME TABLE spans TO x", "EXCHANGE TABLES spans AND scratch", "OPTIMIZE TABLE spans", "SYSTEM SHUTDOWN",
        "SYSTEM DROP QUERY CACHE", "SYSTEM STOP MERGES", "SYSTEM RELOAD CONFIG", "KILL QUERY WHERE 1", "KILL MUTATION WHERE 1",
        "ATTACH TABLE x FROM '/tmp' (a Int8) ENGINE = Memory", "DETACH TABLE spans", "BACKUP TABLE spans TO File('/tmp/x')",
        "RESTORE TABLE spans FROM File('/tmp/x')", "GRANT ALL ON *.* TO default", "EXECUTE AS default SELECT 1",
        "BEGIN TRANSACTION", "MOVE USER x TO y",
    ],
)  # fmt: skip
def test_a_reader_changes_nothing(shop: Shop, sql: str) -> None:
    for key in ("mine", "both", "auditor"):
        answer = shop.ask(sql, key)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) in {(403, "164"), (403, "497"), (400, "62")}


@pytest.mark.parametrize(
    "settings",
    [
        {"query_cache_tag": ""}, {"readonly": "0"}, {"additional_table_filters": "{}"}, {"max_rows_to_read": "10"},
        {"force_primary_key": "1"}, {"database": "system"}, {"format_schema": _FILE}, {"format_template_row": _FILE},
        {"output_format_schema": _FILE}, {"output_format_write_statistics": "1"}, {"use_query_cache": "1"},
        {"max_threads": "64"},
        {"max_memory_usage": "1"}, {"dialect": "clickhouse_json"}, {"allow_introspection_functions": "1"}, {"log_queries": "1"},
        {"default_format": "JSONEachRowWithProgress"},
        {"default_format": "TSV SETTINGS query_cache_tag = ''"},
        {"default_format": "TSV PARALLEL WITH SELECT 1"}, {"default_format": "arrowtable"},
        {"max_execution_time": "100000"}, {"max_execution_time": "0"},
        {"use_query_condition_cache": "1"}, {"no_such_setting": "1"}, {"a b": "1"},
    ],
)  # fmt: skip
def test_a_reader_sets_nothing_that_tells(shop: Shop, settings: dict[str, str]) -> None:
    for sql in ("SELECT count() FROM spans", "DESCRIBE TABLE spans"):
        assert 400 <= shop.ask(sql, **settings).status_code < 500


def test_figures_tell_a_reader_nothing_of_others(shop: Shop) -> None:
    answer = shop.ask("SELECT count() FROM spans WHERE start_ns < 3 LIMIT 1 FORMAT JSON")
    assert "statistics" not in answer.json()
    assert answer.json().get("rows_before_limit_at_least", 1) == 1
    summary = json.loads(answer.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("0", "1")


def test_what_a_dashboard_may_send(shop: Shop) -> None:
    answer = shop.ask(
        "SELECT tenant, count() AS n FROM calls GROUP BY tenant",
        default_format="JSON", max_execution_time="30", output_format_json_quote_64bit_integers="1",
        session_timezone="Europe/Berlin", database="default", session_id="ignored",
    )  # fmt: skip
    assert answer.json()["data"] == [{"tenant": "7", "n": "10000"}]


def test_who_is_who(shop: Shop) -> None:
    def get(headers: dict[str, str] | None = None, **parameters: str) -> tuple[int, str | None]:
        url = httpx.URL(shop.store, params={"query": "SELECT 1", **parameters})
        answer = httpx.get(url, headers=headers, timeout=30, trust_env=False)
        return answer.status_code, answer.headers.get("X-ClickHouse-Exception-Code")

    token = shop.tokens["mine"]
    assert get({"Authorization": "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()}) == (200, None)
    assert get({"Authorization": f"Bearer {token}"}) == (200, None)
    assert get({"X-ClickHouse-Key": token}) == (200, None)
    assert get(user="anyone", password=token) == (200, None)
    assert get() == (401, "194")
    assert get({"X-ClickHouse-Key": "costspan_guess_guess"}) == (403, "516")
    assert get({"Authorization": "Basic ???"}) == (401, "194")
    assert get({"X-ClickHouse-Key": shop.tokens["writer"]}) == (403, "497")


def test_clickhouse_connect_with_a_read_key(shop: Shop) -> None:
    client = clickhouse_connect.get_client(dsn=shop.store, username="reader", password=shop.tokens["mine"])
    assert client.query_df("SELECT start_ns, tenant FROM spans ORDER BY start_ns LIMIT 2")["start_ns"].tolist() == [0, 2]
    assert client.query("SELECT count() FROM spans WHERE tenant = {t:String}", parameters={"t": "7"}).result_rows == [(10000,)]
    with client.query_row_block_stream("SELECT start_ns FROM spans") as stream:
        assert sum(len(block) for block in stream) == 10000
    with pytest.raises(DatabaseError) as refused:
        client.insert("spans", [["x"]], column_names=["project"])
    assert refused.value.code in {164, 497}
