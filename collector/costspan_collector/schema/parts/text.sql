v -> multiIf(
    v.kind = 'string_value', v.string_value,
    v.kind = 'int_value', toString(v.int_value),
    v.kind = 'double_value', toString(v.double_value),
    v.kind = 'bool_value', toString(v.bool_value),
    v.kind = 'bytes_value', base64Encode(v.bytes_value),
    v.kind = 'array_value', concat('[', arrayStringConcat(arrayMap(w -> multiIf(
        w.kind = 'string_value', toJSONString(w.string_value),
        w.kind = 'int_value', toString(w.int_value),
        w.kind = 'double_value', toString(w.double_value),
        w.kind = 'bool_value', toString(w.bool_value),
        w.kind = 'bytes_value', toJSONString(base64Encode(w.bytes_value)),
        'null'), v.array_value.values), ','), ']'),
    v.kind = 'kvlist_value', concat('{', arrayStringConcat(arrayMap(e -> concat(toJSONString(e.key), ':', multiIf(
        e.value.kind = 'string_value', toJSONString(e.value.string_value),
        e.value.kind = 'int_value', toString(e.value.int_value),
        e.value.kind = 'double_value', toString(e.value.double_value),
        e.value.kind = 'bool_value', toString(e.value.bool_value),
        e.value.kind = 'bytes_value', toJSONString(base64Encode(e.value.bytes_value)),
        'null')), v.kvlist_value.values), ','), '}'),
    '')
