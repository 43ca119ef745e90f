SELECT invoice_id, vendor, sku, start_ns, end_ns, toString(quantity) AS quantity, toString(amount) AS amount, currency, source
FROM invoices FINAL
WHERE project = {project:String} AND end_ns > {since:Int64} AND start_ns < {until:Int64}
ORDER BY sku, invoice_id
