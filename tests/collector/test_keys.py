"""Keys: made, kept hashed, asked for, rotated, revoked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from costspan_collector.errors import DeniedError, KeysError
from costspan_collector.security import keys
from costspan_collector.security.access import ANYONE, Access, Grant, sent_token


def create(folder: Path, *, project: str = "acme", reads: bool = True, writes: bool = True) -> str:
    with keys.changing(folder / keys.FILE) as kept:
        key, token = keys.make(name="", project=project, reads=reads, writes=writes)
        kept.append(key)
    return token


def test_without_keys_everyone_may_do_everything(tmp_path: Path) -> None:
    access = Access(tmp_path)
    assert access.grant(None) == access.grant("anything") == ANYONE
    assert not access.guarded()
    assert ANYONE.to_write("shop") == "shop"
    assert not ANYONE.to_read()


def test_a_key_grants_its_project_and_scopes(tmp_path: Path) -> None:
    token = create(tmp_path, reads=True, writes=False)
    grant = Access(tmp_path).grant(token)
    assert grant == Grant("acme", reads=True, writes=False, key=keys.id_of(token))
    assert grant.to_read() == "acme"
    with pytest.raises(DeniedError, match="only reads") as denied:
        grant.to_write("acme")
    assert denied.value.status == 403


def test_a_write_key_writes_to_its_own_project_only(tmp_path: Path) -> None:
    grant = Access(tmp_path).grant(create(tmp_path, reads=False))
    assert grant.to_write("") == grant.to_write("acme") == "acme"
    with pytest.raises(DeniedError, match=r"'acme'.*'shop'") as denied:
        grant.to_write("shop")
    assert denied.value.status == 403
    with pytest.raises(DeniedError, match="only writes"):
        grant.to_read()


def test_an_admin_key_opens_any_project(tmp_path: Path) -> None:
    grant = Access(tmp_path).grant(create(tmp_path, project=""))
    assert grant.to_write("shop") == "shop"
    assert not grant.to_read()


@pytest.mark.parametrize(
    "wrong", [None, "", "costspan", "costspan_", "costspan_{id}", "costspan_{id}_00", "{token}0", "\udc80", "é"]
)
def test_anything_else_is_401(tmp_path: Path, wrong: str | None) -> None:
    token = create(tmp_path)
    access = Access(tmp_path)
    with pytest.raises(DeniedError) as denied:
        access.grant(wrong and wrong.format(id=keys.id_of(token), token=token))
    assert denied.value.status == 401


def test_the_file_holds_no_key_and_is_private(tmp_path: Path) -> None:
    token = create(tmp_path)
    path = tmp_path / keys.FILE
    assert token.rpartition("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [keys.FILE]


def test_a_change_is_noticed_while_running(tmp_path: Path) -> None:
    access = Access(tmp_path)
    assert access.grant(None) == ANYONE
    token = create(tmp_path)
    with pytest.raises(DeniedError):
        access.grant(None)
    assert access.grant(token).project == "acme"
    with keys.changing(tmp_path / keys.FILE) as kept:
        kept.clear()
    with pytest.raises(DeniedError):
        access.grant(token)


def test_a_file_that_goes_away_opens_nothing(tmp_path: Path) -> None:
    token = create(tmp_path)
    access = Access(tmp_path)
    (tmp_path / keys.FILE).unlink()
    for sent in (None, token):
        with pytest.raises(DeniedError):
            access.grant(sent)


def test_a_file_that_is_spoilt_changes_nothing_while_running_and_stops_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = create(tmp_path)
    access = Access(tmp_path)
    (tmp_path / keys.FILE).write_text('{"keys": [{"id": 3}]}')
    assert access.grant(token).project == "acme"
    assert "is not a file of keys" in caplog.text
    with pytest.raises(KeysError, match=r"keys.json is not a file of keys"):
        Access(tmp_path)


def test_a_key_ends(tmp_path: Path) -> None:
    token = create(tmp_path)
    path = tmp_path / keys.FILE
    content = json.loads(path.read_text())
    content["keys"][0]["ends_s"] = int(time.time())
    path.write_text(json.dumps(content))
    with pytest.raises(DeniedError, match="has ended"):
        Access(tmp_path).grant(token)


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, None),
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "Basic abc"}, None),
        ({"costspan-key": "abc"}, "abc"),
        ({"authorization": "Bearer abc", "costspan-key": "def"}, "abc"),
    ],
)
def test_where_a_token_may_be(headers: dict[str, str], token: str | None) -> None:
    assert sent_token(headers) == token
