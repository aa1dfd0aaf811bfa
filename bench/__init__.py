"""The harness: suites, plans, processes, records, reports. Knows nothing of caches or rewards."""
