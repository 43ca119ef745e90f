"""A look at the outline of an OTLP body, before it is made into objects.

A message of two bytes becomes an object of two hundred, so a body well within its limit could fill the memory. What no honest
body looks like is refused by its outline: many items, and hardly any bytes for each.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from costspan_collector.errors import RefusedError
from costspan_collector.settings import MIB

MOST_JSON_BYTES = 8 * MIB
"""JSON is slow to read, and takes twenty times its size meanwhile."""
_LEAST_GROUP_BYTES = 24  # a resource or scope with one item in it
_LEAST_ITEM_BYTES = 12  # the ids of a span alone are 28, the time of a log record 9
_LEAST_OBJECT_BYTES = 12  # {"key":"a","value":{"intValue":1}}: two objects of 17
_SLACK = 1000


def check_outline(body: bytes) -> None:
    """Check that a request of any signal, in protobuf, has no more items than its bytes are good for.

    Raises:
        RefusedError: 400, it has, or its outline cannot be read.
    """
    outline = _Outline()
    try:
        outline.ParseFromString(body)
    except DecodeError as error:
        raise RefusedError(400, f"the body is not an OTLP request: {error}") from error
    levels = [outline.resources]
    for least_bytes, name in ((_LEAST_GROUP_BYTES, "scopes"), (_LEAST_GROUP_BYTES, "items"), (_LEAST_ITEM_BYTES, "")):
        count = sum(map(len, levels))
        if count * least_bytes > len(body) + _SLACK:
            raise RefusedError(400, f"the body has {count} parts in {len(body)} bytes: that is no request of OTLP")
        levels = [getattr(each, name) for level in levels for each in level] if name else []


def check_json_outline(body: bytes) -> None:
    """Check that JSON is not too much, and has no more objects and lists than its bytes are good for.

    Raises:
        RefusedError: 413 or 400, it is, or it has.
    """
    if len(body) > MOST_JSON_BYTES:
        raise RefusedError(
            413, f"the body is larger than {MOST_JSON_BYTES // MIB} MB of JSON: send it in smaller pieces, or as protobuf"
        )
    objects = body.count(b"{") + body.count(b"[")
    if objects * _LEAST_OBJECT_BYTES > len(body) + _SLACK:
        raise RefusedError(400, f"the body has {objects} objects in {len(body)} bytes: that is no request of OTLP")


def _made() -> Any:
    """The class of a message that every signal's request can be read as: its items are bytes there, and are not read."""
    file = descriptor_pb2.FileDescriptorProto(name="costspan/outline.proto", package="costspan", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, field, number, kind in (
        ("Request", "resources", 1, ".costspan.Resource"),
        ("Resource", "scopes", 2, ".costspan.Scope"),
        ("Scope", "items", 2, ""),
    ):
        file.message_type.add(name=name).field.add(
            name=field,
            number=number,
            label=kinds.LABEL_REPEATED,
            type=kinds.TYPE_MESSAGE if kind else kinds.TYPE_BYTES,
            type_name=kind or None,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("costspan.Request"))


_Outline = _made()
