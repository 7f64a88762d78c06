"""The embedded warehouse: the ClickHouse engine (chDB) in one process, behind ClickHouse's HTTP protocol.

`python -m warehouse.embedded --path DIR --port PORT` owns one data directory and answers on 127.0.0.1 as a
ClickHouse server would, so that dbt-clickhouse, clickhouse-connect and BI clients need not know the difference.
It is the default for development and for a single machine; set MAILHOUSE_WAREHOUSE_URL for a real server.

What a real server has and this one refuses or lacks:
- users other than `default` and read-only readers (no CREATE USER, GRANT or row policies);
- anything that reaches outside the data directory: files, URLs, other databases, Python, INTO OUTFILE, BACKUP.
  Back up by stopping the server and copying the directory;
- `async_insert` (ignored: batch in the client), `client_protocol_version` (ignored: revision 0), role=;
- a password in a dictionary's source: within the engine `default` has none, so write `source(clickhouse(table 't'))`;
- KILL QUERY by the client's query_id: the engine has ids of its own, which system.processes shows.
"""
