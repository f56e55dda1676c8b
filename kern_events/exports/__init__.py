"""Sessions in the formats of others: CloudEvents, AG-UI, OpenTelemetry, Parquet; and whole namespaces.

Each module makes one format of events, and is imported when it is asked for. None can be read back:
that is what SessionLog.export is for.
"""
